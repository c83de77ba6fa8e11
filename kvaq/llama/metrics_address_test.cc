#include "kvaq/llama/metrics_address.h"

#include <gtest/gtest.h>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

std::string refusal(const std::string& text) {
    try {
        (void)parse_metrics_address(text);
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
        return error.what();
    }
    return "";
}

TEST(MetricsAddress, TakesLoopbackAddresses) {
    EXPECT_EQ(parse_metrics_address("127.0.0.1:9464").url(9464), "http://127.0.0.1:9464/metrics");
    EXPECT_EQ(parse_metrics_address("127.1.2.3:0").url(5), "http://127.1.2.3:5/metrics");
    EXPECT_EQ(parse_metrics_address("localhost:1").host, "127.0.0.1");
    EXPECT_EQ(parse_metrics_address("[::1]:65535").url(65535), "http://[::1]:65535/metrics");
    EXPECT_TRUE(parse_metrics_address("127.0.0.1:80,public").loopback);
}

TEST(MetricsAddress, AnAddressForOtherMachinesMustBeMeant) {
    for (const char* address :
         {"0.0.0.0:9464", "192.168.1.2:9464", "[::]:9464", "128.0.0.1:9464", "[::ffff:127.0.0.1]:1"}) {
        EXPECT_NE(refusal(address).find(std::string(address) + ",public"), std::string::npos) << address;
        EXPECT_FALSE(parse_metrics_address(std::string(address) + ",public").loopback) << address;
    }
}

TEST(MetricsAddress, RefusesWhatIsNoAddress) {
    for (const char* text : {"",
                             ":",
                             "9464",
                             "127.0.0.1",
                             "127.0.0.1:",
                             ":9464",
                             "127.0.0.1:x",
                             "127.0.0.1:65536",
                             "127.0.0.1:-1",
                             "127.0.0.1:99999999999999999999",
                             "127.0.0.1:80 ",
                             "127.0.0.1: 80",
                             "::1:80",
                             "[::1:80",
                             "[]:80",
                             "host.example:80",
                             "127.0.0.256:80",
                             "127.0.0.1:80,private",
                             ",public",
                             "http://127.0.0.1:80"}) {
        EXPECT_NE(refusal(text).find("HOST:PORT"), std::string::npos) << text;
    }
}

}  // namespace
}  // namespace kvaq
