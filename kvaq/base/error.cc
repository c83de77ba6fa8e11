#include "kvaq/base/error.h"

#include <cstdio>
#include <cstdlib>

namespace kvaq {
namespace {

std::string message(const std::string& fact, const std::string& wanted, const std::string& found,
                    const std::string& hint) {
    std::string text = fact;
    if (!wanted.empty()) text += ": wanted " + wanted;
    if (!found.empty()) text += (wanted.empty() ? ": found " : ", found ") + found;
    if (!hint.empty()) text += ". " + hint;
    return text;
}

}  // namespace

Error::Error(ErrorCode code, const std::string& fact, const std::string& wanted, const std::string& found,
             const std::string& hint)
    : std::runtime_error(message(fact, wanted, found, hint)), code_(code) {}

void check_failed(const char* file, int line, const char* what) noexcept {
    std::fprintf(stderr, "kvaq: internal error, please report: %s:%d: check failed: %s\n", file, line, what);
    std::abort();
}

}  // namespace kvaq
