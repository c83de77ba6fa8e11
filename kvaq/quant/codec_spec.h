#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kvaq {

/// Bits per code. kTernary is "1.58 bits": three levels, five codes in a byte.
enum class CodeBits : uint8_t { k1 = 1, k2 = 2, k3 = 3, k4 = 4, k5 = 5, k6 = 6, k8 = 8, kTernary = 9, k16 = 16 };

/// Number of code levels: 2^b, or 3 for ternary. Not defined for k16 (float16 has no codes).
[[nodiscard]] size_t n_levels(CodeBits bits) noexcept;
/// Nominal bits per code: 1, log2(3), 2, 3, 4, 5, 6, 8, 16.
[[nodiscard]] double nominal_bits(CodeBits bits) noexcept;
/// "1", "1.58", "2", ... "16".
[[nodiscard]] std::string to_string(CodeBits bits);

/// How a group's range becomes scale and zero point.
enum class AffineRule : uint8_t {
    kMinMax,  ///< round to nearest between the group's minimum and maximum (asymmetric) or +-absmax (symmetric)
    kQuanto,  ///< Optimum Quanto's rule (paper checklist 23); equal to kMinMax asymmetric but for float order
    kHqq,     ///< HQQ's rule with proximal refinement of the zero point (checklist 24)
};

/// Direction in which a group runs.
enum class GroupAxis : uint8_t {
    kPerToken,    ///< along the token's channels; a group larger than head_dim spans whole consecutive tokens
    kPerChannel,  ///< along tokens for one channel (KIVI's rule for keys)
};

/// Orthogonal basis in which a head is quantized.
enum class Basis : uint8_t { kIdentity, kHadamard };

struct TransformCodec;

/// How one (layer, side, KV head) is stored: every field that decides bytes and decoded values.
struct CodecSpec {
    CodeBits bits = CodeBits::k16;
    AffineRule rule = AffineRule::kMinMax;
    GroupAxis axis = GroupAxis::kPerToken;
    uint16_t group = 64;     ///< elements that share one scale: 32, 64 or 128; ignored for k16
    bool symmetric = false;  ///< scale only, no zero point; kMinMax only
    Basis basis = Basis::kIdentity;

    /// Set: a transform codec (kvaq/quant/transform.h), and the fields above mean nothing.
    std::shared_ptr<const TransformCodec> transform = nullptr;

    bool operator==(const CodecSpec& other) const noexcept;
    /// Raw float16: neither codes nor a transform.
    [[nodiscard]] bool is_float16() const noexcept { return bits == CodeBits::k16 && transform == nullptr; }
};

/// "4b-g64-tok-asym-minmax-id", the form used in logs and JSON; float16 is "f16"; a transform codec is "klt-2.38b-<digest>", with trellis codes "tcq-...".
[[nodiscard]] std::string to_string(const CodecSpec& spec);
/// Inverse of to_string, but for transform codecs. Throws Error kInvalidArgument.
[[nodiscard]] CodecSpec codec_spec_from_string(const std::string& text);

/// Mean nominal bits per element: of codes, without scales and gains.
[[nodiscard]] double nominal_bits(const CodecSpec& spec) noexcept;

}  // namespace kvaq
