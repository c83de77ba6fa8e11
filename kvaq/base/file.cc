#include "kvaq/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

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

}  // namespace

void atomic_write(const std::string& path, std::span<const std::byte> bytes) {
    // Not mkstemp: it would make the file private to its owner, and umask cannot be asked for without a race.
    std::string temporary;
    int fd = -1;
    for (int attempt = 0; fd < 0 && attempt < 1000; ++attempt) {
        temporary = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
        fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    if (fd < 0) fail("cannot write beside", path, errno);
    Descriptor file(fd);
    const auto give_up = [&](const char* what) {
        const int error = errno;
        ::unlink(temporary.c_str());
        fail(what, path, error);
    };
    size_t done = 0;
    while (done < bytes.size()) {
        const ssize_t n = ::write(file.get(), bytes.data() + done, bytes.size() - done);
        if (n < 0) {
            if (errno == EINTR) continue;
            give_up("cannot write");
        }
        done += static_cast<size_t>(n);
    }
    if (::fsync(file.get()) != 0) give_up("cannot write");
    if (!file.close()) give_up("cannot write");
    if (::rename(temporary.c_str(), path.c_str()) != 0) give_up("cannot replace");
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const Descriptor parent(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
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
