#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>

namespace kvaq {

/// Text that no one has written before, from word lists and a seed: the same on every machine. Tasks use it so that nothing of them can be in a
/// calibration text.
class MadeUpText {
  public:
    /// Independent streams for every (seed, stream, number).
    MadeUpText(uint64_t seed, std::string_view stream, uint64_t number);

    /// low <= result <= high.
    [[nodiscard]] uint32_t integer(uint32_t low, uint32_t high);
    [[nodiscard]] std::string first_name();
    [[nodiscard]] std::string place();
    [[nodiscard]] std::string thing();   ///< a noun
    [[nodiscard]] std::string colour();  ///< a word of one token in most vocabularies
    [[nodiscard]] std::string animal();
    [[nodiscard]] std::string weekday();
    /// "The quiet baker carried a green lamp to the harbour." and the like.
    [[nodiscard]] std::string sentence();
    /// A paragraph of n sentences, ending with a space.
    [[nodiscard]] std::string sentences(size_t n);

  private:
    template <size_t N>
    std::string pick(const std::array<const char*, N>& words) {
        return words[integer(0, static_cast<uint32_t>(N) - 1)];
    }
    std::mt19937_64 random_;
};

/// Distinct places, in a fixed order: names of the needles of one haystack.
[[nodiscard]] std::string place_name(size_t index);

}  // namespace kvaq
