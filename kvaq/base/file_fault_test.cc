// atomic_write where it is killed, the disk is full or the folder may not be written to.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <thread>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/sha256.h"

namespace kvaq {
namespace {

namespace fs = std::filesystem;

constexpr int kSkipped = 77;

class FileFault : public testing::Test {
  protected:
    FileFault() {
        char name[] = "/tmp/kvaq_file_fault_XXXXXX";
        folder_ = ::mkdtemp(name);
    }
    ~FileFault() override { fs::remove_all(folder_); }
    [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
    [[nodiscard]] size_t n_files() const {
        return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
    }
    /// A child process: its exit code is what the function returns.
    static pid_t start(const std::function<int()>& child) {
        const pid_t pid = ::fork();
        if (pid == 0) ::_exit(child());
        return pid;
    }
    static int wait(pid_t pid) {
        int status = 0;
        ::waitpid(pid, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    /// Writes over `name`, which exists; 0 if that is refused with kIo, with the old file intact and alone in the folder.
    [[nodiscard]] int refused_write(const std::string& name, size_t n_bytes) const {
        const std::vector<std::byte> before = read_file(path(name));
        try {
            atomic_write(path(name), std::vector<std::byte>(n_bytes, std::byte{2}));
            return 1;
        } catch (const Error& error) {
            if (error.code() != ErrorCode::kIo) return 2;
        }
        return read_file(path(name)) != before ? 3 : n_files() != 1 ? 4 : 0;
    }
    std::string folder_;
};

TEST_F(FileFault, KilledAtAnyMomentTheFileIsTheOldOneOrTheNewOne) {
    // Every version carries its number and a checksum.
    const auto version = [](uint32_t number) {
        std::vector<std::byte> bytes(300000 + number % 7 * 50000, static_cast<std::byte>(number));
        const std::string digest = sha256_hex(bytes);
        for (const char c : digest) bytes.push_back(static_cast<std::byte>(c));
        return bytes;
    };
    std::mt19937 random(20261126);
    uint32_t first = 0;
    size_t n_left = 0;
    for (int round = 0; round < 60; ++round) {
        const pid_t pid = start([&] {
            for (uint32_t number = first + 1;; ++number) atomic_write(path("state"), version(number));
            return 0;
        });
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 12000));
        ::kill(pid, SIGKILL);
        EXPECT_EQ(wait(pid), 128 + SIGKILL);
        size_t n = 0;
        for (const auto& entry : fs::directory_iterator(folder_)) {
            // Whatever is there is whole, under the name of the file and under any other.
            const std::vector<std::byte> bytes = read_file(entry.path().string());
            ASSERT_GT(bytes.size(), 64U) << entry.path();
            const std::string digest(reinterpret_cast<const char*>(bytes.data()) + bytes.size() - 64, 64);
            ASSERT_EQ(sha256_hex(std::span(bytes).first(bytes.size() - 64)), digest) << entry.path();
            ++n;
        }
        n_left = std::max(n_left, n);
        first += 100;
    }
    EXPECT_LE(n_left, 60U);
    EXPECT_GE(n_left, 1U) << "no file was ever finished: the test says nothing";
}

TEST_F(FileFault, AFullDiskIsSaidAndTheOldFileStays) {
    const int result = wait(start([&] {
        if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            ::mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=256k") != 0)
            return kSkipped;
        atomic_write(path("a"), std::vector<std::byte>(100000, std::byte{1}));
        if (const int wrong = refused_write("a", 200000); wrong != 0) return wrong;
        if (const int wrong = refused_write("a", 10000000); wrong != 0) return wrong;
        atomic_write(path("a"), std::vector<std::byte>(100001, std::byte{3}));  // and what fits can be written again
        return read_file(path("a")).size() == 100001 ? 0 : 5;
    }));
    if (result == kSkipped)
        GTEST_SKIP() << "no file system may be mounted here; AFileLimit... does the same with RLIMIT_FSIZE";
    EXPECT_EQ(result, 0);
}

TEST_F(FileFault, AFileLimitIsSaidAndTheOldFileStays) {
    atomic_write(path("a"), std::vector<std::byte>(1000, std::byte{1}));
    EXPECT_EQ(wait(start([&] {
                  ::signal(SIGXFSZ, SIG_IGN);  // then the write fails with EFBIG
                  const rlimit limit{50000, 50000};
                  ::setrlimit(RLIMIT_FSIZE, &limit);
                  return refused_write("a", 200000);
              })),
              0);
}

TEST_F(FileFault, AFolderThatMayNotBeWrittenToIsSaidAndTheOldFileStays) {
    atomic_write(path("a"), std::vector<std::byte>(1000, std::byte{1}));
    ::chmod(folder_.c_str(), 0555);
    EXPECT_EQ(wait(start([&] {
                  if (::getuid() == 0 && ::setuid(65534) != 0) return kSkipped;  // nothing is forbidden to root
                  return refused_write("a", 2000);
              })),
              0);
    const int mounted = wait(start([&] {
        if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            ::mount(folder_.c_str(), folder_.c_str(), nullptr, MS_BIND, nullptr) != 0 ||
            ::mount(nullptr, folder_.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) != 0)
            return kSkipped;
        return refused_write("a", 2000);
    }));
    EXPECT_TRUE(mounted == 0 || mounted == kSkipped) << mounted;
    ::chmod(folder_.c_str(), 0755);
}

}  // namespace
}  // namespace kvaq
