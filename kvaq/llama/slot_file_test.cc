#include "kvaq/llama/slot_file.h"

#include <gtest/gtest.h>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

std::vector<std::byte> snapshot_of(size_t n) {
    std::vector<std::byte> bytes(n);
    for (size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::byte>(i * 7);
    return bytes;
}

std::string refusal(const std::vector<std::byte>& bytes) {
    try {
        (void)read_slot_file(bytes, "slot.bin");
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
        return error.what();
    }
    return "";
}

TEST(SlotFile, GivesBackTokensAndSnapshot) {
    for (const size_t n_tokens : {size_t{0}, size_t{1}, size_t{300}}) {
        std::vector<llama_token> tokens(n_tokens);
        for (size_t i = 0; i < n_tokens; ++i) tokens[i] = static_cast<llama_token>(i * 31);
        const std::vector<std::byte> snapshot = snapshot_of(100);
        const std::vector<std::byte> bytes = slot_file(tokens, snapshot);
        const SlotFile read = read_slot_file(bytes, "slot.bin");
        EXPECT_EQ(read.tokens, tokens);
        EXPECT_TRUE(std::equal(read.snapshot.begin(), read.snapshot.end(), snapshot.begin(), snapshot.end()));
    }
}

TEST(SlotFile, RefusesEveryFlippedBitOfItsOwnAndEveryTruncation) {
    const std::vector<llama_token> tokens = {1, 5, 49151, 0, 7, 7, 7, 12};
    const std::vector<std::byte> snapshot = snapshot_of(100);
    const std::vector<std::byte> good = slot_file(tokens, snapshot);
    const size_t n_own = good.size() - snapshot.size();
    for (size_t bit = 0; bit < 8 * n_own; ++bit) {
        std::vector<std::byte> bad = good;
        bad[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
        EXPECT_NE(refusal(bad), "") << "bit " << bit;
    }
    for (size_t size = 0; size < good.size(); ++size)
        EXPECT_NE(refusal({good.begin(), good.begin() + static_cast<ptrdiff_t>(size)}), "") << size << " bytes";
}

TEST(SlotFile, RefusesTokensOfAnotherSnapshot) {
    const std::vector<llama_token> tokens = {1, 2, 3};
    std::vector<std::byte> bytes = slot_file(tokens, snapshot_of(100));
    const std::vector<std::byte> other = slot_file(tokens, std::vector<std::byte>(100, std::byte{1}));
    std::copy(other.end() - 100, other.end(), bytes.end() - 100);
    EXPECT_NE(refusal(bytes), "");
}

TEST(SlotFile, NamesAnOlderVersion) {
    std::vector<std::byte> bytes = slot_file({}, snapshot_of(100));
    bytes[7] = std::byte{'1'};
    EXPECT_NE(refusal(bytes).find("version 1, of an older kvaq"), std::string::npos) << refusal(bytes);
}

}  // namespace
}  // namespace kvaq
