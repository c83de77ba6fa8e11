#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvaq {

/// Writes a whole file so that readers see the old one or the new one, never a part: a temporary file beside it, fsync,
/// rename, fsync of the folder. Throws Error kIo (with the system's reason); the target is then untouched and the temporary file gone. A
/// process killed in between leaves the old file, and nothing else where the file system has nameless files (ext4, xfs, btrfs, tmpfs).
void atomic_write(const std::string& path, std::span<const std::byte> bytes);

/// The same for text.
void atomic_write_text(const std::string& path, std::string_view text);

/// The whole file. Throws Error kNotFound (no such file), kIo (a folder, unreadable, or larger than max_bytes).
[[nodiscard]] std::vector<std::byte> read_file(const std::string& path,
                                               size_t max_bytes = std::numeric_limits<size_t>::max());

/// Bytes [offset, offset + out.size()) of a file. Throws like read_file, and kCorrupt if the file ends before.
void read_file_range(const std::string& path, uint64_t offset, std::span<std::byte> out);

/// Size in bytes. Throws Error kNotFound, kIo (not a regular file).
[[nodiscard]] uint64_t file_bytes(const std::string& path);

}  // namespace kvaq
