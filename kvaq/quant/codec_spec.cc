#include "kvaq/quant/codec_spec.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <sstream>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/quant/transform.h"

namespace kvaq {
namespace {

constexpr std::array kAllBits = {CodeBits::k1, CodeBits::kTernary, CodeBits::k2, CodeBits::k3, CodeBits::k4,
                                 CodeBits::k5, CodeBits::k6,       CodeBits::k8, CodeBits::k16};

[[noreturn]] void bad_spec(const std::string& text) {
    throw Error(ErrorCode::kInvalidArgument, "unreadable codec",
                "'f16' or '<bits>b-g<32|64|128>-<tok|chan>-<asym|sym>-<minmax|quanto|hqq>-<id|had>'", "'" + text + "'");
}

}  // namespace

size_t n_levels(CodeBits bits) noexcept {
    if (bits == CodeBits::kTernary) return 3;
    return size_t{1} << static_cast<size_t>(bits);
}

double nominal_bits(CodeBits bits) noexcept {
    return bits == CodeBits::kTernary ? std::log2(3.0) : static_cast<double>(bits);
}

std::string to_string(CodeBits bits) {
    return bits == CodeBits::kTernary ? "1.58" : std::to_string(static_cast<int>(bits));
}

bool CodecSpec::operator==(const CodecSpec& other) const noexcept {
    if (transform != nullptr || other.transform != nullptr) {
        return transform == other.transform ||
               (transform != nullptr && other.transform != nullptr && *transform == *other.transform);
    }
    return bits == other.bits && rule == other.rule && axis == other.axis && group == other.group &&
           symmetric == other.symmetric && basis == other.basis;
}

double nominal_bits(const CodecSpec& spec) noexcept {
    return spec.transform != nullptr ? spec.transform->mean_bits() : nominal_bits(spec.bits);
}

std::string to_string(const CodecSpec& spec) {
    if (spec.transform != nullptr) {
        char bits[32];
        std::snprintf(bits, sizeof bits, "%s-%.2fb-", spec.transform->codes == TransformCodes::kTrellis ? "tcq" : "klt",
                      spec.transform->mean_bits());
        return bits + spec.transform->digest;
    }
    if (spec.bits == CodeBits::k16) return "f16";
    const char* rule = spec.rule == AffineRule::kMinMax   ? "minmax"
                       : spec.rule == AffineRule::kQuanto ? "quanto"
                                                          : "hqq";
    return to_string(spec.bits) + "b-g" + std::to_string(spec.group) +
           (spec.axis == GroupAxis::kPerToken ? "-tok" : "-chan") + (spec.symmetric ? "-sym-" : "-asym-") + rule +
           (spec.basis == Basis::kHadamard ? "-had" : "-id");
}

CodecSpec codec_spec_from_string(const std::string& text) {
    CodecSpec spec;
    if (text == "f16") return spec;
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, '-');) parts.push_back(part);
    if (parts.size() != 6) bad_spec(text);
    bool known = false;
    for (const CodeBits bits : kAllBits) {
        if (bits != CodeBits::k16 && parts[0] == to_string(bits) + "b") {
            spec.bits = bits;
            known = true;
        }
    }
    if (!known) bad_spec(text);
    if (parts[1] != "g32" && parts[1] != "g64" && parts[1] != "g128") bad_spec(text);
    spec.group = static_cast<uint16_t>(std::stoi(parts[1].substr(1)));
    const auto pick = [&](const std::string& part, std::initializer_list<const char*> names) {
        size_t i = 0;
        for (const char* name : names) {
            if (part == name) return i;
            ++i;
        }
        bad_spec(text);
    };
    spec.axis = static_cast<GroupAxis>(pick(parts[2], {"tok", "chan"}));
    spec.symmetric = pick(parts[3], {"asym", "sym"}) == 1;
    spec.rule = static_cast<AffineRule>(pick(parts[4], {"minmax", "quanto", "hqq"}));
    spec.basis = static_cast<Basis>(pick(parts[5], {"id", "had"}));
    return spec;
}

}  // namespace kvaq
