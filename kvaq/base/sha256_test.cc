#include "kvaq/base/sha256.h"

#include <gtest/gtest.h>

#include <string>

namespace kvaq {
namespace {

// NIST FIPS 180-2 appendix B and the CAVP short messages.
TEST(Sha256, GivesTheNistVectors) {
    EXPECT_EQ(sha256_hex(std::string_view("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(sha256_hex(std::string_view("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha256_hex(std::string_view("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, DoesNotDependOnHowTheInputIsSplit) {
    std::string text;
    for (int i = 0; i < 300; ++i) text += static_cast<char>('a' + i % 26);
    for (size_t n = 0; n <= text.size(); n += 7) {  // lengths on both sides of every padding case
        const std::string_view all = std::string_view(text).substr(0, n);
        for (const size_t step : {size_t{1}, size_t{13}, size_t{64}, size_t{100}}) {
            Sha256 sha;
            for (size_t i = 0; i < n; i += step) sha.update(all.substr(i, step));
            EXPECT_EQ(sha.hex_digest(), sha256_hex(all)) << n << " bytes in steps of " << step;
        }
    }
}

}  // namespace
}  // namespace kvaq
