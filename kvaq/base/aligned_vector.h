#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace kvaq {

/// Of whole cache lines, as registers and tiles are loaded fastest.
template <typename T>
struct LineAllocator {
    using value_type = T;
    static constexpr std::align_val_t kLine{64};

    LineAllocator() = default;
    template <typename U>
    explicit LineAllocator(const LineAllocator<U>& /*other*/) noexcept {}
    [[nodiscard]] T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
    void deallocate(T* at, size_t /*n*/) noexcept { ::operator delete(at, kLine); }
    bool operator==(const LineAllocator&) const = default;
};

/// A vector whose first element begins a cache line.
template <typename T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

}  // namespace kvaq
