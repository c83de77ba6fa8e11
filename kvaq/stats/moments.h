#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvaq/base/float16.h"

namespace kvaq {

/// Streaming first and second moments of vectors x in R^dim:
///   count N,   mean = (1/N) sum x,   second moment = (1/N) sum x x^T   (uncentred, [dim, dim], symmetric)
/// Sums run in float over blocks of at most kBlock vectors (rank updates that the compiler turns into vector code), then in
/// double. The result depends on the order of the vectors and on how calls cut them into blocks, in the last digits only.
/// add() allocates nothing. Thread-safety: distinct objects only.
class Moments {
  public:
    static constexpr size_t kBlock = 64;

    Moments() = default;
    explicit Moments(size_t dim);

    /// n vectors of `dim` floats at x, x + stride, ...
    void add(const float* x, size_t n, size_t stride) noexcept;
    void add(const float16* x, size_t n, size_t stride) noexcept;

    [[nodiscard]] size_t dim() const noexcept { return dim_; }
    [[nodiscard]] uint64_t count() const noexcept { return count_; }
    [[nodiscard]] std::vector<double> mean() const;           ///< [dim], zeros when empty
    [[nodiscard]] std::vector<double> second_moment() const;  ///< [dim, dim], zeros when empty

  private:
    void add_block(size_t n) noexcept;

    size_t dim_ = 0;
    size_t row_ = 0;  ///< dim rounded up to 16: columns of the scratch
    uint64_t count_ = 0;
    std::vector<double> sum_;       ///< [dim]
    std::vector<double> products_;  ///< [dim, dim], upper triangle
    std::vector<float> block_;      ///< [kBlock, row] the block's vectors, zero padded
    std::vector<float> partial_;    ///< [dim, row] the block's products
};

}  // namespace kvaq
