#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

namespace {

constexpr const char* kBitsAllowed = "1, 1.58, 2, 3, 4, 5, 6, 8 or 16 bits";
constexpr const char* kSuffixesAllowed =
    "-g<n>, -gk<n>, -gv<n> (group size 32, 64, 128), -kchan, -vchan, -sym, -quanto, -hqq, -rot, -rotk, -rotv, -lm, "
    "-tcq, "
    "-w<n> (window), -s<n> (sink tokens)";
constexpr const char* kHeadsAllowed = "k<bits>v<bits> (like k4v2), q8_0, q5_1, q5_0, q4_1, q4_0 or f16";
constexpr int kMaxWindow = 1 << 20;
constexpr int kMaxSinks = 128;

std::string lower(std::string_view text) {
    std::string out(text);
    for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return out;
}

bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

/// Digits only; empty or too large gives nothing.
std::optional<int> parse_int(std::string_view text) {
    if (text.empty() || !std::all_of(text.begin(), text.end(), is_digit)) return std::nullopt;
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
}

std::optional<CodeBits> parse_bits(std::string_view text) {
    constexpr std::array<std::pair<std::string_view, CodeBits>, 9> table = {{{"1", CodeBits::k1},
                                                                             {"1.58", CodeBits::kTernary},
                                                                             {"2", CodeBits::k2},
                                                                             {"3", CodeBits::k3},
                                                                             {"4", CodeBits::k4},
                                                                             {"5", CodeBits::k5},
                                                                             {"6", CodeBits::k6},
                                                                             {"8", CodeBits::k8},
                                                                             {"16", CodeBits::k16}}};
    for (const auto& [name, bits] : table) {
        if (name == text) return bits;
    }
    return std::nullopt;
}

std::string_view bits_text(CodeBits bits) {
    switch (bits) {
        case CodeBits::k1:
            return "1";
        case CodeBits::kTernary:
            return "1.58";
        case CodeBits::k2:
            return "2";
        case CodeBits::k3:
            return "3";
        case CodeBits::k4:
            return "4";
        case CodeBits::k5:
            return "5";
        case CodeBits::k6:
            return "6";
        case CodeBits::k8:
            return "8";
        case CodeBits::k16:
            return "16";
    }
    return "?";
}

struct NamedHead {
    std::string_view name;
    CodeBits bits;
    bool symmetric;
};
/// llama.cpp's cache types that have a twin here: groups of 32, scale only (_0) or scale and minimum (_1), rotated.
constexpr std::array<NamedHead, 5> kNamedHeads = {{{"q8_0", CodeBits::k8, true},
                                                   {"q5_1", CodeBits::k5, false},
                                                   {"q5_0", CodeBits::k5, true},
                                                   {"q4_1", CodeBits::k4, false},
                                                   {"q4_0", CodeBits::k4, true}}};

[[noreturn]] void fail(const std::string& text, const std::string& fact, const std::string& wanted,
                       const std::string& found) {
    throw Error(ErrorCode::kInvalidArgument, "preset '" + text + "': " + fact, wanted, found,
                "Examples: k4v2, k4v4-g32-rot, k3v2-w64-s4, q4_0, f16; a file needs a '/' or the ending .gguf");
}

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts(1);
    for (const char c : text) {
        if (c == '-') {
            parts.emplace_back();
        } else {
            parts.back() += c;
        }
    }
    return parts;
}

class Parser {
  public:
    explicit Parser(const std::string& text) : text_(text), parts_(split(lower(text))) {}

    Preset parse() {
        parse_head();
        for (size_t i = 1; i < parts_.size(); ++i) parse_suffix(parts_[i]);
        finish();
        return preset_;
    }

  private:
    void parse_head() {
        const std::string& head = parts_[0];
        if (head == "f16") return;
        for (const NamedHead& named : kNamedHeads) {
            if (named.name != head) continue;
            named_ = true;
            const CodecSpec spec = {
                .bits = named.bits, .group = 32, .symmetric = named.symmetric, .basis = Basis::kHadamard};
            preset_.key = preset_.value = spec;
            return;
        }
        const size_t v = head.find('v');
        if (head.empty() || head[0] != 'k' || v == std::string::npos) fail(text_, "unknown name", kHeadsAllowed, head);
        preset_.key.bits = bits_of("K", std::string_view(head).substr(1, v - 1));
        preset_.value.bits = bits_of("V", std::string_view(head).substr(v + 1));
    }

    CodeBits bits_of(const char* side, std::string_view text) const {
        const std::optional<CodeBits> bits = parse_bits(text);
        if (!bits) fail(text_, std::string("bits of ") + side, kBitsAllowed, "'" + std::string(text) + "'");
        return *bits;
    }

    void once(const std::string& key) {
        if (std::find(seen_.begin(), seen_.end(), key) != seen_.end()) {
            fail(text_, "suffix -" + key + " is given twice", "each suffix once", "");
        }
        seen_.push_back(key);
    }

    uint16_t group_of(const std::string& part, size_t prefix) const {
        const std::optional<int> n = parse_int(std::string_view(part).substr(prefix));
        if (!n || (*n != 32 && *n != 64 && *n != 128)) fail(text_, "group size", "32, 64 or 128", "-" + part);
        return static_cast<uint16_t>(*n);
    }

    int count_of(const std::string& part, int limit, const char* what) const {
        const std::optional<int> n = parse_int(std::string_view(part).substr(1));
        if (!n || *n > limit) fail(text_, what, "0 to " + std::to_string(limit), "-" + part);
        return *n;
    }

    void parse_suffix(const std::string& part) {
        const auto starts = [&](const char* prefix) { return part.rfind(prefix, 0) == 0; };
        const auto digit_after = [&](size_t n) { return part.size() > n && is_digit(part[n]); };
        if (starts("w") && digit_after(1)) {
            once("w");
            preset_.window = count_of(part, kMaxWindow, "residual window in tokens");
        } else if (starts("s") && digit_after(1)) {
            once("s");
            preset_.sinks = count_of(part, kMaxSinks, "sink tokens");
        } else if (named_ && (starts("g") || part == "kchan" || part == "vchan" || part == "sym" || part == "quanto" ||
                              part == "hqq" || part == "lm" || part == "tcq" || starts("rot"))) {
            fail(text_, "suffix -" + part + " does not go with " + parts_[0] + " (its codec is fixed)",
                 "-w<n> or -s<n>, or a name of the form k<bits>v<bits>", "");
        } else if (starts("gk")) {
            once("gk");
            group_k_ = group_of(part, 2);
        } else if (starts("gv")) {
            once("gv");
            group_v_ = group_of(part, 2);
        } else if (starts("g")) {
            once("g");
            group_ = group_of(part, 1);
        } else if (part == "kchan") {
            once(part);
            preset_.key.axis = GroupAxis::kPerChannel;
        } else if (part == "vchan") {
            once(part);
            preset_.value.axis = GroupAxis::kPerChannel;
        } else if (part == "sym") {
            once(part);
            preset_.key.symmetric = preset_.value.symmetric = true;
        } else if (part == "quanto" || part == "hqq") {
            once("rule");
            preset_.key.rule = preset_.value.rule = part == "hqq" ? AffineRule::kHqq : AffineRule::kQuanto;
        } else if (part == "lm" || part == "tcq") {
            once("lm or -tcq");
            preset_.lloyd_max = true;
            preset_.trellis = part == "tcq";
        } else if (part == "rot" || part == "rotk" || part == "rotv") {
            once(part);
            if (part != "rotv") preset_.key.basis = Basis::kHadamard;
            if (part != "rotk") preset_.value.basis = Basis::kHadamard;
        } else {
            fail(text_, "unknown suffix", kSuffixesAllowed, "-" + part);
        }
    }

    void finish() {
        if (!named_) {
            preset_.key.group = group_k_.value_or(group_.value_or(64));
            preset_.value.group = group_v_.value_or(group_.value_or(64));
        }
        if (preset_.lloyd_max) {
            const std::string codes = preset_.trellis ? "-tcq" : "-lm";
            for (const std::string& part : seen_) {
                if (part != "lm or -tcq" && part != "w" && part != "s")
                    fail(text_, "suffix -" + part + " does not go with " + codes + " (its codec is fixed)",
                         "-w<n> or -s<n>", "");
            }
            for (const CodecSpec* spec : {&preset_.key, &preset_.value}) {
                if (spec->bits == CodeBits::kTernary)
                    fail(text_, "bits of a preset with " + codes, "1, 2, 3, 4, 5, 6, 8 or 16", "1.58");
            }
            preset_.lloyd_max = preset_.key.bits != CodeBits::k16 || preset_.value.bits != CodeBits::k16;
            preset_.trellis = preset_.trellis && preset_.lloyd_max;
        }
        if (preset_.key.symmetric && preset_.key.rule != AffineRule::kMinMax) {
            fail(text_, "-sym goes with the min-max rule only", "-sym, or -quanto, or -hqq", "two of them");
        }
        // A float16 side has no codes: its other fields mean nothing and are put back, so that equal storage is equal.
        if (preset_.key.bits == CodeBits::k16) preset_.key = CodecSpec{};
        if (preset_.value.bits == CodeBits::k16) preset_.value = CodecSpec{};
        preset_.name = canonical_name();
    }

    std::string canonical_name() const {
        const CodecSpec& k = preset_.key;
        const CodecSpec& v = preset_.value;
        const bool codes_k = k.bits != CodeBits::k16;
        const bool codes_v = v.bits != CodeBits::k16;
        std::string name;
        if (named_) {
            name = parts_[0];
        } else if (!codes_k && !codes_v) {
            name = "f16";
        } else {
            name = "k" + std::string(bits_text(k.bits)) + "v" + std::string(bits_text(v.bits));
            if (preset_.lloyd_max) name += preset_.trellis ? "-tcq" : "-lm";
            const uint16_t gk = codes_k ? k.group : v.group;
            const uint16_t gv = codes_v ? v.group : k.group;
            if (gk == gv) {
                if (gk != 64) name += "-g" + std::to_string(gk);
            } else {
                if (gk != 64) name += "-gk" + std::to_string(gk);
                if (gv != 64) name += "-gv" + std::to_string(gv);
            }
            if (k.axis == GroupAxis::kPerChannel) name += "-kchan";
            if (v.axis == GroupAxis::kPerChannel) name += "-vchan";
            if (k.symmetric || v.symmetric) name += "-sym";
            const AffineRule rule = codes_k ? k.rule : v.rule;
            if (rule == AffineRule::kQuanto) name += "-quanto";
            if (rule == AffineRule::kHqq) name += "-hqq";
            const bool rot_k = k.basis == Basis::kHadamard;
            const bool rot_v = v.basis == Basis::kHadamard;
            if ((rot_k || !codes_k) && (rot_v || !codes_v)) {
                name += "-rot";
            } else if (rot_k || rot_v) {
                name += rot_k ? "-rotk" : "-rotv";
            }
        }
        if (preset_.window > 0) name += "-w" + std::to_string(preset_.window);
        if (preset_.sinks > 0) name += "-s" + std::to_string(preset_.sinks);
        return name;
    }

    const std::string& text_;
    std::vector<std::string> parts_;
    Preset preset_;
    bool named_ = false;
    std::optional<uint16_t> group_, group_k_, group_v_;
    std::vector<std::string> seen_;
};

}  // namespace

Preset parse_preset(const std::string& text) { return Parser(text).parse(); }

bool is_preset(const std::string& text) noexcept {
    if (text.find('/') != std::string::npos || text.find('\\') != std::string::npos) return false;
    const auto at = [&](size_t i) {
        return i < text.size() ? static_cast<char>(std::tolower(static_cast<unsigned char>(text[i]))) : '\0';
    };
    const auto matches = [&](size_t from, std::string_view what) {
        for (size_t i = 0; i < what.size(); ++i) {
            if (at(from + i) != what[i]) return false;
        }
        return true;
    };
    if (text.size() >= 5 && matches(text.size() - 5, ".gguf")) return false;
    const size_t dash = std::min(text.find('-'), text.size());
    const auto number = [&](size_t& i) {
        const size_t start = i;
        while (i < dash && (is_digit(text[i]) || text[i] == '.')) ++i;
        return i > start;
    };
    if (at(0) == 'k') {  // k4v2, and mistyped ones like k7v2: the parser's message is the useful one
        size_t i = 1;
        return number(i) && i < dash && at(i++) == 'v' && number(i) && i == dash;
    }
    for (const std::string_view name : {"f16", "bf16", "f32"}) {
        if (dash == name.size() && matches(0, name)) return true;
    }
    size_t i = matches(0, "iq") ? 2 : (at(0) == 'q' ? 1 : 0);
    return i > 0 && is_digit(at(i)) && number(i) && at(i) == '_' && i + 1 < dash && dash - i <= 4;
}

}  // namespace kvaq
