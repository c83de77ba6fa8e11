#pragma once

#include <cstddef>
#include <string_view>

namespace kvaq {

/// The last tokens of the built-in text: calibration leaves them to `kvaq plan --check`, which measures on the text's end.
inline constexpr size_t kHeldOutTokens = 2048;

/// The built-in calibration text, data/calibration-mix.txt (scripts/make_calibration_text.py made it): prose, encyclopedia, news, chat, code, markup, several
/// languages, dealt in turn. About 35,000 tokens. Contains no evaluation text.
[[nodiscard]] std::string_view calibration_text() noexcept;

}  // namespace kvaq
