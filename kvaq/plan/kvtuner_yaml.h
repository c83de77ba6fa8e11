#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvaq {

/// Bits of one layer, or of one KV head of it.
struct KvtunerEntry {
    int32_t layer = 0;
    int32_t head = -1;  ///< -1 = the whole layer
    double key_bits = 0;
    double value_bits = 0;
    bool operator==(const KvtunerEntry&) const = default;
};

/// True if the first line that is no comment reads like one of these files ("0:").
[[nodiscard]] bool looks_like_kvtuner_yaml(const std::string& text);

/// The only YAML that KVTuner writes (its calibration_presets and config folders): block mappings of integers,
///   LAYER:            or   LAYER:
///     nbits_key: 8           HEAD:
///     nbits_value: 4           nbits_key: 8
///                              nbits_value: 4
/// Comments and blank lines are skipped. Anything else is an Error kInvalidArgument with its line number: flow style,
/// tabs, other keys, a key twice, a missing one.
[[nodiscard]] std::vector<KvtunerEntry> parse_kvtuner_yaml(const std::string& text, const std::string& what);

}  // namespace kvaq
