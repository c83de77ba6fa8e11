#include "kvaq/quant/transform.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvaq/base/error.h"
#include "kvaq/base/sha256.h"
#include "kvaq/quant/hadamard.h"

namespace kvaq {
namespace {

constexpr uint32_t kVersion = 2;
constexpr size_t kMaxDim = 512;

[[noreturn]] void corrupt(const std::string& wanted, const std::string& found) {
    throw Error(ErrorCode::kCorrupt, "a transform codec's parameters", wanted, found,
                "Make the plan again with kvaq plan");
}

void check_fit(const TransformFit& fit) {
    if (fit.dim < 8 || fit.dim > kMaxDim || fit.dim % 8 != 0)
        corrupt("a head size of 8 to 512", std::to_string(fit.dim));
    const bool matrix = fit.basis == TransformBasis::kMatrix;
    if (fit.matrix.size() != (matrix ? fit.dim * fit.dim : 0) || fit.row_scale.size() != (matrix ? fit.dim : 0) ||
        fit.order.size() != (fit.basis == TransformBasis::kSorted ? fit.dim : 0) || fit.scale.size() != fit.dim ||
        fit.offset.size() != fit.dim) {
        corrupt("arrays of the head size", "others");
    }
    std::vector<bool> there(fit.dim);
    for (const uint16_t channel : fit.order) {
        if (channel >= fit.dim || there[channel]) corrupt("every channel once", "another order");
        there[channel] = true;
    }
    for (const std::vector<float>* values : {&fit.row_scale, &fit.scale, &fit.offset}) {
        for (const float x : *values) {
            if (!std::isfinite(x)) corrupt("finite numbers", "one that is not");
        }
    }
    for (size_t b = 1; b < fit.levels.size(); ++b) {
        const std::vector<int8_t>& levels = fit.levels[b];
        if (levels.size() != size_t{1} << b || !std::is_sorted(levels.begin(), levels.end()))
            corrupt("sorted codebooks of 2 to 64 levels", "others");
    }
    if (!fit.levels[0].empty()) corrupt("no codebook for 0 bits", "one");
}

template <typename T>
void put(std::vector<std::byte>& out, const T* data, size_t n) {
    const auto* bytes = reinterpret_cast<const std::byte*>(data);
    out.insert(out.end(), bytes, bytes + n * sizeof(T));
}

}  // namespace

size_t TransformFit::bytes() const noexcept {
    size_t n = matrix.size() + order.size() * sizeof(uint16_t) +
               (row_scale.size() + scale.size() + offset.size()) * sizeof(float);
    for (const std::vector<int8_t>& codebook : levels) n += codebook.size();
    return n;
}

double TransformCodec::mean_bits() const noexcept {
    double sum = 0;
    size_t n = 0;
    for (const uint8_t bits : unit_bits) {
        const size_t channels = std::min(transform_unit(fit->side), fit->dim - n);
        sum += static_cast<double>(bits) * static_cast<double>(channels);
        n += channels;
    }
    return sum / static_cast<double>(fit->dim);
}

std::shared_ptr<const TransformCodec> make_transform_codec(std::shared_ptr<const TransformFit> fit,
                                                           std::vector<uint8_t> unit_bits, TransformCodes codes) {
    KVAQ_CHECK(fit != nullptr);
    check_fit(*fit);
    const size_t unit = transform_unit(fit->side);
    if (unit_bits.size() != (fit->dim + unit - 1) / unit)
        corrupt(std::to_string((fit->dim + unit - 1) / unit) + " units of channels", std::to_string(unit_bits.size()));
    for (size_t i = 0; i < unit_bits.size(); ++i) {
        if (unit_bits[i] == 7 || unit_bits[i] > 8) corrupt("0 to 6 or 8 bits a channel", std::to_string(unit_bits[i]));
        if (i > 0 && unit_bits[i] > unit_bits[i - 1]) corrupt("bits that never rise", "rising ones");
    }
    Sha256 hash;
    hash.update(transform_fit_bytes(*fit));
    hash.update(std::as_bytes(std::span(unit_bits)));
    if (codes == TransformCodes::kTrellis) hash.update(std::as_bytes(std::span("trellis")));
    const std::string digest = hash.hex_digest();
    return std::make_shared<const TransformCodec>(TransformCodec{
        .fit = std::move(fit), .unit_bits = std::move(unit_bits), .codes = codes, .digest = digest.substr(0, 16)});
}

std::vector<std::byte> transform_fit_bytes(const TransformFit& fit) {
    std::vector<std::byte> out;
    // Fits that version 1 could say are written as it did: plans made of them keep their digests.
    const uint32_t version = fit.basis == TransformBasis::kSorted ? kVersion : 1;
    const std::array<uint32_t, 4> head = {version, fit.side == Side::kKey ? 0U : 1U, static_cast<uint32_t>(fit.dim),
                                          static_cast<uint32_t>(fit.basis)};
    put(out, head.data(), head.size());
    if (fit.basis == TransformBasis::kHadamard) {
        const std::vector<float> ones(fit.dim, 1.0F);
        put(out, ones.data(), ones.size());
    }
    put(out, fit.row_scale.data(), fit.row_scale.size());
    put(out, fit.scale.data(), fit.scale.size());
    put(out, fit.offset.data(), fit.offset.size());
    put(out, fit.matrix.data(), fit.matrix.size());
    put(out, fit.order.data(), fit.order.size());
    for (const std::vector<int8_t>& codebook : fit.levels) put(out, codebook.data(), codebook.size());
    return out;
}

TransformFit parse_transform_fit(std::span<const std::byte> bytes) {
    std::array<uint32_t, 4> head = {};
    const auto take = [&](void* to, size_t n) {
        if (bytes.size() < n) corrupt(std::to_string(n) + " more bytes", std::to_string(bytes.size()));
        if (n > 0) std::memcpy(to, bytes.data(), n);  // an empty matrix has no address
        bytes = bytes.subspan(n);
    };
    const auto take_all = [&](auto& values, size_t n) {
        values.resize(n);
        take(values.data(), n * sizeof values[0]);
    };
    take(head.data(), sizeof head);
    if (head[0] < 1 || head[0] > kVersion)
        corrupt("version 1 to " + std::to_string(kVersion), "version " + std::to_string(head[0]));
    const auto sorted = static_cast<uint32_t>(TransformBasis::kSorted);
    if (head[1] > 1 || head[3] > sorted || (head[3] == sorted) != (head[0] == kVersion) || head[2] < 8 ||
        head[2] > kMaxDim || head[2] % 8 != 0)
        corrupt("a side, a head size and a basis", "others");
    TransformFit fit;
    fit.side = head[1] == 0 ? Side::kKey : Side::kValue;
    fit.dim = head[2];
    fit.basis = static_cast<TransformBasis>(head[3]);
    const bool matrix = fit.basis == TransformBasis::kMatrix;
    if (fit.basis != TransformBasis::kSorted) take_all(fit.row_scale, fit.dim);
    if (fit.basis == TransformBasis::kHadamard) {
        if (std::any_of(fit.row_scale.begin(), fit.row_scale.end(), [](float x) { return x != 1.0F; }))
            corrupt("rows of length 1", "others");
        fit.row_scale.clear();
    }
    take_all(fit.scale, fit.dim);
    take_all(fit.offset, fit.dim);
    take_all(fit.matrix, matrix ? fit.dim * fit.dim : 0);
    take_all(fit.order, fit.basis == TransformBasis::kSorted ? fit.dim : 0);
    for (size_t b = 1; b < fit.levels.size(); ++b) take_all(fit.levels[b], size_t{1} << b);
    if (!bytes.empty()) corrupt("nothing more", std::to_string(bytes.size()) + " bytes");
    check_fit(fit);
    return fit;
}

namespace {

template <typename T>
void sorted_forward(const TransformFit& fit, const T* x, T* z) noexcept {
    for (size_t i = 0; i < fit.dim; ++i) z[i] = x[fit.order[i]];
    hadamard_units(z, fit.dim, transform_unit(fit.side));
}

template <typename T>
void sorted_backward(const TransformFit& fit, const T* z, T* x) noexcept {
    std::array<T, kMaxDim> mixed;
    std::copy_n(z, fit.dim, mixed.data());
    hadamard_units(mixed.data(), fit.dim, transform_unit(fit.side));
    for (size_t i = 0; i < fit.dim; ++i) x[fit.order[i]] = mixed[i];
}

}  // namespace

void to_codec_channels(const TransformFit& fit, const float* x, float* z) noexcept {
    KVAQ_CHECK(fit.basis != TransformBasis::kMatrix);
    if (fit.basis == TransformBasis::kSorted) return sorted_forward(fit, x, z);
    if (z != x) std::copy_n(x, fit.dim, z);
    hadamard_transform(z, fit.dim);
}

void to_model_channels(const TransformFit& fit, const float* z, float* x) noexcept {
    KVAQ_CHECK(fit.basis != TransformBasis::kMatrix);
    if (fit.basis == TransformBasis::kSorted) return sorted_backward(fit, z, x);
    if (x != z) std::copy_n(z, fit.dim, x);
    hadamard_transform(x, fit.dim);
}

void transform_forward(const TransformFit& fit, double* x) {
    if (fit.basis == TransformBasis::kHadamard) return hadamard_transform(x, fit.dim);
    if (fit.basis == TransformBasis::kSorted) {
        std::array<double, kMaxDim> from = {};
        std::copy_n(x, fit.dim, from.data());
        return sorted_forward(fit, from.data(), x);
    }
    // U (U^T U)^-1 x, by y += x - U^T U y: what is missing shrinks by the norm of U^T U - 1 each time.
    constexpr int kRounds = 12;
    std::array<double, kMaxDim> y = {};
    std::array<double, kMaxDim> z = {};
    std::copy_n(x, fit.dim, y.data());
    for (int round = 0;; ++round) {
        for (size_t i = 0; i < fit.dim; ++i) {
            z[i] = 0;
            for (size_t j = 0; j < fit.dim; ++j) z[i] += static_cast<double>(fit.at(i, j)) * y[j];
            z[i] *= static_cast<double>(fit.row_scale[i]);
        }
        if (round == kRounds) break;
        std::array<double, kMaxDim> back = z;
        transform_backward(fit, back.data());
        for (size_t j = 0; j < fit.dim; ++j) y[j] += x[j] - back[j];
    }
    std::copy_n(z.data(), fit.dim, x);
}

void transform_backward(const TransformFit& fit, double* z) {
    if (fit.basis == TransformBasis::kHadamard) return hadamard_transform(z, fit.dim);
    if (fit.basis == TransformBasis::kSorted) return sorted_backward(fit, z, z);
    std::array<double, kMaxDim> x = {};
    for (size_t i = 0; i < fit.dim; ++i) {
        const double scaled = z[i] * static_cast<double>(fit.row_scale[i]);
        for (size_t j = 0; j < fit.dim; ++j) x[j] += scaled * static_cast<double>(fit.at(i, j));
    }
    std::copy_n(x.data(), fit.dim, z);
}

const std::array<float, 256>& transform_gains() noexcept {
    static const std::array<float, 256> table = [] {
        std::array<float, 256> gains = {};
        for (int i = 0; i < 256; ++i)
            gains[static_cast<size_t>(i)] = static_cast<float>(std::exp2(static_cast<double>(i - 128) / 16));
        return gains;
    }();
    return table;
}

float transform_gain(uint8_t code) noexcept { return transform_gains()[code]; }

}  // namespace kvaq
