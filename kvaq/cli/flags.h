#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace kvaq {

/// Throws Error kIo unless a file can be made at `path` (its folder exists and may be written to). Called before long work, so
/// that a wrong -o costs a second, not an hour. An empty path means that no file is wanted.
void require_writable(const std::string& path);

/// What --json takes: a file, or "-" for stdout, where the verb then prints nothing else.
[[nodiscard]] inline bool is_stdout(const std::string& json) noexcept { return json == "-"; }
/// require_writable, but for "-".
void require_json(const std::string& json);
/// Writes it there; nothing for an empty path. Throws Error kIo.
void write_json(const std::string& json, std::string_view text);
/// Indented, pure ASCII, bytes that are no UTF-8 replaced, a newline at the end.
[[nodiscard]] std::string json_text(const nlohmann::ordered_json& json);
inline constexpr const char* kJsonHelp = "write all numbers to this file as JSON; - prints them instead of the table";

/// What -t is without being given: every processor this program may run on, at least 1.
[[nodiscard]] int32_t default_threads() noexcept;

}  // namespace kvaq
