#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kvaq/plan/plan.h"

namespace kvaq {

/// A plan as JSON, for people and for the report: every field of Plan, a codec as its text (kvaq/quant/codec_spec.h),
/// heads of a layer one by one with their mean code bits, and bytes_per_token. The key order is fixed, so equal plans give equal text.
[[nodiscard]] nlohmann::ordered_json plan_to_json(const Plan& plan);

/// Of a plan's file and JSON: 1 for plans without a key_period, which older versions read as well.
[[nodiscard]] uint32_t schema_version(const Plan& plan) noexcept;

/// Text that says everything a plan says and nothing else, the same for equal plans: what a plan file's checksum covers.
[[nodiscard]] std::string canonical_text(const Plan& plan);

}  // namespace kvaq
