#include "kvaq/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "kvaq/base/error.h"

namespace kvaq {

namespace {

/// Owns a file descriptor.
class Descriptor {
  public:
    explicit Descriptor(int fd) noexcept : fd_(fd) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    [[nodiscard]] int get() const noexcept { return fd_; }
    /// Closes now and says whether that worked (a full disk may be told only here).
    [[nodiscard]] bool close() noexcept {
        const int fd = fd_;
        fd_ = -1;
        return ::close(fd) == 0;
    }

  private:
    int fd_;
};

[[noreturn]] void fail(const std::string& what, const std::string& path, int error) {
    throw Error(ErrorCode::kIo, what + " '" + path + "'", "", std::strerror(error));
}

/// Opens a regular file for reading.
int open_regular(const std::string& path, uint64_t& size) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT || errno == ENOTDIR) {
            throw Error(ErrorCode::kNotFound, "no such file: '" + path + "'", "", "", "Check the path");
        }
        fail("cannot open", path, errno);
    }
    struct stat info = {};
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        ::close(fd);
        throw Error(ErrorCode::kIo, "cannot read '" + path + "'", "a regular file",
                    S_ISDIR(info.st_mode) ? "a folder" : "something else");
    }
    size = static_cast<uint64_t>(info.st_size);
    return fd;
}

/// Reads out.size() bytes at an offset; returns how many there were.
size_t read_at(int fd, const std::string& path, uint64_t offset, std::span<std::byte> out) {
    size_t done = 0;
    while (done < out.size()) {
        const ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
        if (n < 0) {
            if (errno == EINTR) continue;
            fail("cannot read", path, errno);
        }
        if (n == 0) break;
        done += static_cast<size_t>(n);
    }
    return done;
}

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

/// Writes everything to disk; throws like fail().
void write_all(int fd, const std::string& path, std::span<const std::byte> bytes) {
    size_t done = 0;
    while (done < bytes.size()) {
        const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
        if (n < 0) {
            if (errno == EINTR) continue;
            fail("cannot write", path, errno);
        }
        done += static_cast<size_t>(n);
    }
    if (::fsync(fd) != 0) fail("cannot write", path, errno);
}

/// Calls make(name) with names beside path until one is free; returns it, or "" with errno set.
template <typename Make>
std::string free_name(const std::string& path, Make make) {
    for (int attempt = 0; attempt < 1000; ++attempt) {
        std::string name = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
        if (make(name)) return name;
        if (errno != EEXIST) break;
    }
    return "";
}

/// A whole file under a name of its own beside path. Without a name until it is whole where the file system can do that: a process that
/// is killed while it writes then leaves nothing behind. Not mkstemp: it would make the file private to its owner, and umask cannot be
/// asked for without a race.
std::string write_beside(const std::string& path, std::span<const std::byte> bytes) {
    {
        Descriptor nameless(::open(folder_of(path).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666));
        if (nameless.get() >= 0) {
            write_all(nameless.get(), path, bytes);
            const std::string self = "/proc/self/fd/" + std::to_string(nameless.get());
            const std::string name = free_name(path, [&](const std::string& n) {
                return ::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, n.c_str(), AT_SYMLINK_FOLLOW) == 0;
            });
            if (!name.empty()) return name;  // else there is no /proc
        }
    }
    int fd = -1;
    const std::string name = free_name(path, [&](const std::string& n) {
        fd = ::open(n.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        return fd >= 0;
    });
    if (name.empty()) fail("cannot write beside", path, errno);
    Descriptor file(fd);
    try {
        write_all(fd, path, bytes);
        if (!file.close()) fail("cannot write", path, errno);
    } catch (...) {
        ::unlink(name.c_str());
        throw;
    }
    return name;
}

}  // namespace

void atomic_write(const std::string& path, std::span<const std::byte> bytes) {
    std::error_code none;
    if (std::filesystem::exists(path, none) &&
        !std::filesystem::is_regular_file(path, none)) {  // a device would be replaced
        throw Error(ErrorCode::kIo, "cannot write '" + path + "'", "a file", "a folder, device or pipe");
    }
    const std::string temporary = write_beside(path, bytes);
    if (::rename(temporary.c_str(), path.c_str()) != 0) {
        const int error = errno;
        ::unlink(temporary.c_str());
        fail("cannot replace", path, error);
    }
    const Descriptor parent(::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (parent.get() >= 0) (void)::fsync(parent.get());  // some file systems refuse it; the file itself is safe
}

void atomic_write_text(const std::string& path, std::string_view text) {
    atomic_write(path, std::as_bytes(std::span(text)));
}

std::vector<std::byte> read_file(const std::string& path, size_t max_bytes) {
    uint64_t size = 0;
    const Descriptor file(open_regular(path, size));
    if (size > max_bytes) {
        throw Error(ErrorCode::kIo, "'" + path + "' is too large", "at most " + std::to_string(max_bytes) + " bytes",
                    std::to_string(size) + " bytes");
    }
    std::vector<std::byte> bytes(size);
    bytes.resize(read_at(file.get(), path, 0, bytes));
    return bytes;
}

void read_file_range(const std::string& path, uint64_t offset, std::span<std::byte> out) {
    uint64_t size = 0;
    const Descriptor file(open_regular(path, size));
    if (offset > size || out.size() > size - offset || read_at(file.get(), path, offset, out) != out.size()) {
        throw Error(ErrorCode::kCorrupt, "'" + path + "' is truncated",
                    std::to_string(offset + out.size()) + " bytes or more", std::to_string(size) + " bytes",
                    "Fetch the file again");
    }
}

uint64_t file_bytes(const std::string& path) {
    uint64_t size = 0;
    const Descriptor file(open_regular(path, size));
    return size;
}

}  // namespace kvaq
