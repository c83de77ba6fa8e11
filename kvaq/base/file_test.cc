#include "kvaq/base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

class File : public testing::Test {
  protected:
    File() {
        char name[] = "/tmp/kvaq_file_test_XXXXXX";
        folder_ = ::mkdtemp(name);
    }
    ~File() override { std::filesystem::remove_all(folder_); }
    [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
    static std::vector<std::byte> bytes(const std::string& text) {
        std::vector<std::byte> out(text.size());
        std::memcpy(out.data(), text.data(), text.size());
        return out;
    }
    std::string folder_;
};

ErrorCode code_of(const auto& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.code();
    }
    ADD_FAILURE() << "no Error";
    return ErrorCode::kIo;
}

TEST_F(File, ReadsBackWhatItWrote) {
    std::string text;
    for (int i = 0; i < 100000; ++i) text += static_cast<char>(i * 31);
    atomic_write(path("a"), bytes(text));
    EXPECT_EQ(read_file(path("a")), bytes(text));
    EXPECT_EQ(file_bytes(path("a")), text.size());
    std::vector<std::byte> part(100);
    read_file_range(path("a"), 5000, part);
    EXPECT_EQ(part, bytes(text.substr(5000, 100)));
}

TEST_F(File, ReplacesAFileAndLeavesNothingElseBehind) {
    atomic_write(path("a"), bytes("a long old text"));
    atomic_write(path("a"), bytes("new"));
    atomic_write(path("empty"), {});
    EXPECT_EQ(read_file(path("a")), bytes("new"));
    EXPECT_TRUE(read_file(path("empty")).empty());
    size_t n_files = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++n_files;
    EXPECT_EQ(n_files, 2U);
}

TEST_F(File, GivesTheModeOfAnOrdinaryFile) {
    const mode_t old = ::umask(022);
    atomic_write(path("a"), bytes("x"));
    ::umask(old);
    struct stat info = {};
    ASSERT_EQ(::stat(path("a").c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777U, 0644U);
}

TEST_F(File, SaysWhatIsWrong) {
    EXPECT_EQ(code_of([&] { (void)read_file(path("none")); }), ErrorCode::kNotFound);
    EXPECT_EQ(code_of([&] { (void)read_file(folder_); }), ErrorCode::kIo);
    EXPECT_EQ(code_of([&] { atomic_write(path("none/a"), bytes("x")); }), ErrorCode::kIo);
    EXPECT_EQ(code_of([&] { atomic_write(folder_, bytes("x")); }), ErrorCode::kIo);
    atomic_write(path("a"), bytes("0123456789"));
    EXPECT_EQ(code_of([&] { (void)read_file(path("a"), 9); }), ErrorCode::kIo);
    std::vector<std::byte> part(4);
    EXPECT_EQ(code_of([&] { read_file_range(path("a"), 7, part); }), ErrorCode::kCorrupt);
    EXPECT_EQ(code_of([&] { read_file_range(path("a"), UINT64_MAX - 1, part); }), ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace kvaq
