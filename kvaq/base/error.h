#pragma once

#include <stdexcept>
#include <string>

namespace kvaq {

/// Canonical reasons of a user-facing failure. All of them end a command with exit code 1; the code says which table
/// row of docs/formats.md or of the troubleshooting page applies.
enum class ErrorCode {
    kInvalidArgument,  ///< a flag, preset or value that does not exist or does not parse
    kNotFound,         ///< a file, layer or sequence that is not there
    kCorrupt,          ///< a file that is truncated, malformed or fails its checksum
    kMismatch,         ///< plan, stats or snapshot made for another model, plan or version
    kBudgetTooSmall,   ///< no plan fits
    kUnsupported,      ///< an architecture or feature that is refused by name
    kOutOfMemory,      ///< the cache could not be allocated, or has no room left
    kIo,               ///< reading or writing failed
};

/// The one exception of user, file and machine faults: what was wanted, what was found, what to do.
/// what() is one line: "<fact>: wanted <wanted>, found <found>. <hint>" with the empty parts left out.
class Error : public std::runtime_error {
  public:
    Error(ErrorCode code, const std::string& fact, const std::string& wanted = "", const std::string& found = "",
          const std::string& hint = "");
    [[nodiscard]] ErrorCode code() const noexcept { return code_; }

  private:
    ErrorCode code_;
};

/// Prints file, line and message to stderr and aborts: a programmer's fault, never a user's.
[[noreturn]] void check_failed(const char* file, int line, const char* what) noexcept;

}  // namespace kvaq

#define KVAQ_CHECK(condition)                                                   \
    do {                                                                        \
        if (!(condition)) ::kvaq::check_failed(__FILE__, __LINE__, #condition); \
    } while (false)

#ifdef NDEBUG
#define KVAQ_DCHECK(condition) \
    do {                       \
    } while (false)
#else
#define KVAQ_DCHECK(condition) KVAQ_CHECK(condition)
#endif
