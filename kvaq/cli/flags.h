#pragma once

#include <cstdint>
#include <string>

namespace kvaq {

/// Throws Error kIo unless a file can be made at `path` (its folder exists and may be written to). Called before long work, so
/// that a wrong -o costs a second, not an hour. An empty path means that no file is wanted.
void require_writable(const std::string& path);

/// What -t is without being given: every processor this program may run on, at least 1.
[[nodiscard]] int32_t default_threads() noexcept;

}  // namespace kvaq
