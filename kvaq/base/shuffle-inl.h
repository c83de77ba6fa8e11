// Included by the -inl.h files of kernels, inside their target's own namespace. Lanes of vectors in an order that is known at run time only: GCC has
// a builtin, clang (make fuzz) has none.
#ifdef __clang__
template <typename V, typename I>
static inline V shuffle(V from, I order) {
    V out;
    for (size_t k = 0; k < KVAQ_LANES; ++k) out[k] = from[static_cast<size_t>(order[k]) % KVAQ_LANES];
    return out;
}
template <typename V, typename I>
static inline V shuffle(V low, V high, I order) {
    V out;
    for (size_t k = 0; k < KVAQ_LANES; ++k) {
        const auto at = static_cast<size_t>(order[k]) % (2 * KVAQ_LANES);
        out[k] = at < KVAQ_LANES ? low[at] : high[at - KVAQ_LANES];
    }
    return out;
}
#else
template <typename V, typename I>
static inline V shuffle(V from, I order) {
    return __builtin_shuffle(from, order);
}
template <typename V, typename I>
static inline V shuffle(V low, V high, I order) {
    return __builtin_shuffle(low, high, order);
}
#endif
