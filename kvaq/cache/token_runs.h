#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvaq {

/// Which tokens a sequence holds, in whatever pages: a number for each position. Two sequences share a token where their numbers are equal,
/// also when each has a copy of it in a page of its own. Kept as runs of consecutive positions and numbers.
class TokenRuns {
  public:
    struct Run {
        int32_t pos = 0;
        int32_t n = 0;
        uint64_t number = 0;
        [[nodiscard]] int32_t end() const noexcept { return pos + n; }
        [[nodiscard]] uint64_t end_number() const noexcept { return number + static_cast<uint64_t>(n); }
    };

    // What is noexcept allocates nothing; whatever throws (std::bad_alloc) may leave it half done: PageTable has a copy.

    /// The position must be after all others.
    void append(int32_t pos, uint64_t number);
    /// Takes out the positions [from, to).
    void remove(int32_t from, int32_t to);
    /// Moves the positions [from, to); they may not meet others there.
    void shift(int32_t from, int32_t to, int32_t delta);
    void clear() noexcept { runs_.clear(); }
    [[nodiscard]] bool holds(uint64_t number) const noexcept;
    [[nodiscard]] std::span<const Run> runs() const noexcept { return runs_; }

  private:
    void split(int32_t pos);
    void join() noexcept;
    std::vector<Run> runs_;  ///< by position
};

/// Tokens over all sequences, shared ones once. Its time grows with the square of the number of runs, of which a sequence has one for each time
/// that it was cut, forked and continued, or shifted.
[[nodiscard]] size_t count_tokens(std::span<const TokenRuns> sequences) noexcept;

}  // namespace kvaq
