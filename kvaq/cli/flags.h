#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kvaq/plan/budget.h"

namespace kvaq {

/// What --json takes: a file, or "-" for stdout, where the verb then prints nothing else.
[[nodiscard]] inline bool is_stdout(const std::string& json) noexcept { return json == "-"; }
/// --json as a file: empty where it goes to stdout.
[[nodiscard]] inline std::string json_file(const std::string& json) { return is_stdout(json) ? "" : json; }

/// Throws Error kIo unless a file can be made at each output (its folder exists and may be written to) and no two of them, nor an output and an input, are
/// one file. Called before long work, so that a wrong -o costs a second, not an hour, and never a model. Empty paths and inputs that are no files
/// (presets) are left out.
void require_outputs(const std::vector<std::string>& outputs, const std::vector<std::string>& inputs);
/// Writes it there; nothing for an empty path. Throws Error kIo.
void write_json(const std::string& json, std::string_view text);
/// Indented, pure ASCII, bytes that are no UTF-8 replaced, a newline at the end.
[[nodiscard]] std::string json_text(const nlohmann::ordered_json& json);
inline constexpr const char* kJsonHelp = "write all numbers to this file as JSON; - prints them instead of the table";

/// A word as a shell reads it back.
[[nodiscard]] std::string quoted(const std::string& word);
/// This run, as one would type it again: set once, by main.
void set_command_line(const std::vector<std::string>& args);
[[nodiscard]] const std::string& command_line() noexcept;

/// Of -c, -b and -ub, as CLI::Range wants it beside an int.
inline constexpr int kMostTokens = static_cast<int>(kMaxTokens);

/// What -t is without being given: every processor this program may run on, at least 1.
[[nodiscard]] int32_t default_threads() noexcept;

}  // namespace kvaq
