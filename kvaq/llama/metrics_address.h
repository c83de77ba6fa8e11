#pragma once

#include <string>

namespace kvaq {

/// Where metrics are served.
struct MetricsAddress {
    std::string host;  ///< an IP address, without brackets
    int port = 0;      ///< 0 = any free one
    bool loopback = true;
    [[nodiscard]] std::string url(int bound_port) const;
};

/// Reads "HOST:PORT": HOST is an IPv4 address, an IPv6 address in brackets, or localhost; PORT 0 to 65535 (0: any free one, said in the
/// log). An address that other machines reach is refused unless ",public" follows. Throws Error kInvalidArgument.
[[nodiscard]] MetricsAddress parse_metrics_address(const std::string& text);

}  // namespace kvaq
