#include "kvaq/llama/metrics_address.h"

#include <arpa/inet.h>

#include <charconv>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

[[noreturn]] void refuse(const std::string& text) {
    throw Error(ErrorCode::kInvalidArgument, "the address for metrics", "HOST:PORT, e.g. 127.0.0.1:9464 or [::1]:9464",
                "'" + text + "'", "HOST is an IP address or localhost, PORT a number from 0 (any free one) to 65535");
}

}  // namespace

std::string MetricsAddress::url(int bound_port) const {
    const bool v6 = host.find(':') != std::string::npos;
    return "http://" + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(bound_port) + "/metrics";
}

MetricsAddress parse_metrics_address(const std::string& text) {
    constexpr const char* kPublic = ",public";
    const bool is_public = text.ends_with(kPublic);
    const std::string address =
        is_public ? text.substr(0, text.size() - std::char_traits<char>::length(kPublic)) : text;
    const size_t colon = address.rfind(':');
    if (colon == std::string::npos) refuse(text);
    MetricsAddress out;
    out.host = address.substr(0, colon);
    const char* end = address.data() + address.size();
    const auto [stop, error] = std::from_chars(address.data() + colon + 1, end, out.port);
    if (error != std::errc() || stop != end || address[colon + 1] == '-' || out.port > 65535) refuse(text);
    if (out.host == "localhost") out.host = "127.0.0.1";
    in_addr v4 = {};
    in6_addr v6 = {};
    if (inet_pton(AF_INET, out.host.c_str(), &v4) == 1) {
        out.loopback = ntohl(v4.s_addr) >> 24 == 127;
    } else if (out.host.size() > 2 && out.host.front() == '[' && out.host.back() == ']' &&
               inet_pton(AF_INET6, out.host.substr(1, out.host.size() - 2).c_str(), &v6) == 1) {
        out.host = out.host.substr(1, out.host.size() - 2);
        out.loopback = IN6_IS_ADDR_LOOPBACK(&v6);
    } else {
        refuse(text);
    }
    if (!out.loopback && !is_public) {
        throw Error(ErrorCode::kInvalidArgument, "metrics would be readable from other machines",
                    "a loopback address such as 127.0.0.1:" + std::to_string(out.port), "'" + text + "'",
                    "If that is meant, write " + text + kPublic);
    }
    return out;
}

}  // namespace kvaq
