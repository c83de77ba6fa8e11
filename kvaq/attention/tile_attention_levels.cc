// Attention over packed tiles in integers. With x = scale * (u - bias) + offset (LevelShape), per block of channels that share a scale:
//   keys    q . x  = scale * (sum q u - bias sum q) + offset * sum q             q rounded once per call, but not in the last sum
//   values  sum_t p_t x_t = sum_t (p_t scale_t) (u_t - bias) + sum_t p_t offset_t   p_t scale_t rounded per tile
// A transform's channel scales go into q before rounding, and onto o at the end (TileAttention::finish).
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "kvaq/attention/tile_attention.h"
#include "kvaq/base/error.h"
#include "kvaq/quant/transform.h"

namespace kvaq {
namespace {

constexpr size_t kMaxDim = 512;

/// Of KVAQ_ATTENTION; empty: not said.
std::string_view wanted_mode() noexcept {
    const char* text = std::getenv("KVAQ_ATTENTION");
    return text != nullptr ? text : "";
}

/// None: no such name.
std::optional<AttentionMode> mode_of(std::string_view name) noexcept {
    if (name.empty()) return AttentionMode::kIntegers;
    if (name == "wide") return AttentionMode::kWideIntegers;
    if (name == "exact") return AttentionMode::kExact;
    return std::nullopt;
}

std::atomic<AttentionMode>& chosen() noexcept {
    static std::atomic<AttentionMode> mode{mode_of(wanted_mode()).value_or(AttentionMode::kIntegers)};
    return mode;
}

const std::array<float, kMaxDim>& ones() noexcept {
    static const std::array<float, kMaxDim> values = [] {
        std::array<float, kMaxDim> all;
        all.fill(1.0F);
        return all;
    }();
    return values;
}

/// 0: from nothing or to nothing.
ptrdiff_t bytes_between(const std::byte* from, const std::byte* to) noexcept {
    return from == nullptr || to == nullptr
               ? 0
               : static_cast<ptrdiff_t>(reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from));
}

/// To whole lanes.
size_t padded_channels(const LevelShape& shape, size_t block) noexcept {
    return (shape.channels_of(block) + 15) / 16 * 16;
}

}  // namespace

AttentionMode attention_mode() noexcept { return chosen().load(std::memory_order_relaxed); }

void check_attention_mode() {
    const std::string_view name = wanted_mode();
    if (mode_of(name)) return;
    throw Error(ErrorCode::kInvalidArgument, "unknown way of multiplying (KVAQ_ATTENTION)", "wide, exact, or not set",
                "'" + std::string(name) + "'");
}

void force_attention_mode(AttentionMode mode) noexcept { chosen().store(mode, std::memory_order_relaxed); }

void TileAttention::make_coefs(PackedQueries& packed) noexcept {
    const TileLayout& key_layout = *key_layout_;
    if (exact_ || key_layout.spec.is_float16()) return;
    const LevelShape shape = level_shape(key_layout);
    if (shape.per_channel) return;  // scales differ from tile to tile and go into q there
    const TransformFit* fit = key_layout.spec.transform != nullptr ? key_layout.spec.transform->fit.get() : nullptr;
    const size_t n_rows = shape_.n_rows();
    const size_t dim = shape_.head_dim_k;
    for (size_t row = 0; row < n_rows; ++row)
        packed.offsets[row] = fit != nullptr ? kernels_->dot(&packed.rows[row * dim], fit->offset.data(), dim) : 0.0F;
    for (size_t block = 0; block < shape.n_blocks; ++block) {
        const size_t first = block * shape.block;
        for (size_t row = 0; row < n_rows && shape.has_offset; ++row) {
            packed.totals[block * n_rows + row] =
                kernels_->dot(&packed.rows[row * dim + first], ones().data(), shape.channels_of(block));
        }
        kernels_->quantize_coefs(&packed.rows[first], dim, fit != nullptr ? fit->scale.data() : nullptr, n_rows,
                                 shape.channels_of(block), coefs_of_q_, &packed.coefs[first], dim,
                                 &packed.steps[block * n_rows], &packed.sums[block * n_rows]);
    }
}

/// Of the tiles that were read side by side.
void TileAttention::score_levels(size_t n_keys, const Rows& rows) noexcept {
    const TileLevels& levels = key_levels_;
    const LevelShape& shape = key_reader_->shape();
    const size_t dim = shape_.head_dim_k;
    const size_t all_rows = shape_.n_rows();
    float* s = scores_.data();
    for (size_t block = 0; block < shape.n_blocks; ++block) {
        const size_t first = block * shape.block;
        if (shape.per_channel) {
            const float* scale = &levels.scale[block * shape.stride];
            const float* offset = &levels.offset[block * shape.stride];
            const float* q = &packed_->rows[rows.first * dim];
            kernels_->quantize_coefs(q, dim, scale, rows.n, dim, CoefSize::kWide, coefs_.data(), dim, steps_.data(),
                                     sums_.data());
            for (size_t r = 0; r < rows.n; ++r) {
                init_[r] = 0;
                constants_[r] = kernels_->dot(q + r * dim, offset, dim);
            }
            kernels_->dot_cells(&levels.cells[first * 4], levels.cell_stride, shape.block / 16, dim / 4,
                                CoefSize::kWide, coefs_.data(), dim, rows.n, init_.data(), acc_.data(), n_keys);
            kernels_->add_levels(acc_.data(), n_keys, rows.n, shape.block, steps_.data(), nullptr, nullptr, nullptr,
                                 constants_.data(), s + first, n_keys);
            continue;
        }
        const int32_t* sums = &packed_->sums[block * all_rows + rows.first];
        for (size_t r = 0; r < rows.n; ++r) init_[r] = -shape.bias * sums[r];
        kernels_->dot_cells(&levels.cells[first / 4 * levels.cell_stride], levels.cell_stride, n_keys / 16,
                            shape.channels_of(block) / 4, coefs_of_q_, &packed_->coefs[rows.first * dim + first], dim,
                            rows.n, init_.data(), acc_.data(), n_keys);
        add_scores(shape, block, n_keys, rows);
    }
}

/// acc_ is the block's sums of products.
void TileAttention::add_scores(const LevelShape& shape, size_t block, size_t n_keys, const Rows& rows) noexcept {
    const size_t first = block * shape_.n_rows() + rows.first;
    const float* scale = &key_levels_.scale[block * shape.stride];
    const float* offset = shape.has_offset ? &key_levels_.offset[block * shape.stride] : nullptr;
    kernels_->add_levels(acc_.data(), n_keys, rows.n, n_keys, &packed_->steps[first], scale, offset,
                         &packed_->totals[first], block == 0 ? &packed_->offsets[rows.first] : nullptr, scores_.data(),
                         n_keys);
}

bool TileAttention::multiplies_codes(const std::optional<LevelReader>& reader, size_t n_rows) const noexcept {
    return kernels_->dot_codes != nullptr && n_rows <= kMostCodeRows && reader && reader->shape().joins() &&
           reader->in_planes();
}

/// As score_levels.
void TileAttention::score_codes(size_t tile_tokens, std::span<const PackedTile> tiles, std::span<const PackedTile> soon,
                                const Rows& rows) noexcept {
    LevelReader& reader = *key_reader_;
    const size_t dim = shape_.head_dim_k;
    const size_t n_keys = tiles.size() * tile_tokens;
    for (size_t i = 0; i < tiles.size(); ++i) {
        ahead_.step();
        reader.read_scales(tiles[i].keys, key_levels_, i, tiles.size());
    }
    const LevelShape& shape = reader.shape();
    const size_t n_runs = shape.one_scale() ? reader.n_bands() : 1;
    std::array<PackedCodes, LevelReader::kMostBands> runs;
    for (size_t block = 0; block < shape.n_blocks; ++block) {
        const int32_t* sums = &packed_->sums[block * shape_.n_rows() + rows.first];
        for (size_t r = 0; r < rows.n; ++r) init_[r] = -shape.bias * sums[r];
        for (size_t i = 0; i < tiles.size(); ++i) {
            int32_t* to = &acc_[i * tile_tokens];
            if (n_runs == 0) {  // nothing is coded
                for (size_t r = 0; r < rows.n; ++r) std::fill_n(to + r * n_keys, tile_tokens, 0);
                continue;
            }
            for (size_t run = 0; run < n_runs; ++run) {
                runs[run] =
                    shape.one_scale() ? reader.codes(run, tiles[i].keys) : reader.key_block_codes(block, tiles[i].keys);
                if (i < soon.size()) runs[run].soon = bytes_between(tiles[i].keys, soon[i].keys);
            }
            kernels_->dot_codes(runs.data(), n_runs, 0, tile_tokens / 16, coefs_of_q_,
                                &packed_->coefs[rows.first * dim + block * shape.block], dim, rows.n, init_.data(), to,
                                n_keys);
        }
        add_scores(shape, block, n_keys, rows);
    }
}

/// As sum_levels.
void TileAttention::sum_codes(const TileLayout& layout, std::span<const PackedTile> tiles,
                              std::span<const PackedTile> soon, const Keys& keys, const Rows& rows) noexcept {
    LevelReader& reader = *value_reader_;
    const size_t dim = shape_.padded_v();
    const size_t n_keys = tiles.size() * layout.tile_tokens;
    for (size_t i = 0; i < tiles.size(); ++i) reader.read_scales(tiles[i].values, value_levels_, i, tiles.size());
    const LevelShape& shape = reader.shape();
    const bool weighed = shape.one_scale();
    const Range seen = weigh(keys, n_keys, n_keys, rows, weighed ? &value_levels_ : nullptr, shape.has_offset);
    if (seen.begin >= seen.end) return;
    ahead_.step();
    std::array<PackedCodes, kSeveralTiles> runs;
    for (size_t block = 0; block < shape.n_blocks; ++block) {
        if (!weighed) weigh_block(shape, block, n_keys, rows);
        for (size_t r = 0; r < rows.n; ++r) init_[r] = -shape.bias * sums_[r];
        for (size_t band = 0; band < reader.n_bands(); ++band) {
            for (size_t i = 0; i < tiles.size(); ++i) {
                runs[i] = reader.codes(band, tiles[i].values);
                if (i < soon.size()) runs[i].soon = bytes_between(tiles[i].values, soon[i].values);
            }
            const size_t n = weighed ? runs[0].planes.n_lanes16 : padded_channels(shape, block) / 16;
            kernels_->dot_codes(runs.data(), tiles.size(), block * shape.block / 16, n, CoefSize::kWide, coefs_.data(),
                                n_keys, rows.n, init_.data(), &acc_[reader.first_channel(band)], dim);
        }
        add_sums(layout, shape, block, rows);
    }
}

/// Weights times a block's scales as coefs_, and their sums with its offsets, where several scales serve a token.
void TileAttention::weigh_block(const LevelShape& shape, size_t block, size_t n_keys, const Rows& rows) noexcept {
    const float* p = scores_.data();
    kernels_->quantize_coefs(p, n_keys, &value_levels_.scale[block * shape.stride], rows.n, n_keys, CoefSize::kWide,
                             coefs_.data(), n_keys, steps_.data(), sums_.data());
    for (size_t r = 0; r < rows.n && shape.has_offset; ++r)
        constants_[r] = kernels_->dot(p + r * n_keys, &value_levels_.offset[block * shape.stride], n_keys);
}

void TileAttention::sum_levels(const TileLayout& layout, size_t n_keys, const Keys& keys, const Rows& rows) noexcept {
    const TileLevels& levels = value_levels_;
    const LevelShape& shape = value_reader_->shape();
    const size_t dim = shape_.padded_v();
    const float* p = scores_.data();
    float* o = &o_packed_[rows.first * dim];
    const bool weighed = shape.one_scale();
    const Range seen = weigh(keys, n_keys, n_keys, rows, weighed ? &levels : nullptr, shape.has_offset);
    if (seen.begin >= seen.end) return;
    for (size_t block = 0; block < shape.n_blocks; ++block) {
        const float* scale = &levels.scale[block * shape.stride];
        const float* offset = &levels.offset[block * shape.stride];
        const size_t first = block * shape.block;
        if (shape.per_channel) {  // a block of tokens
            kernels_->quantize_coefs(p + first, n_keys, nullptr, rows.n, shape.block, CoefSize::kWide, coefs_.data(),
                                     n_keys, steps_.data(), sums_.data());
            std::fill_n(init_.data(), rows.n, 0);
            kernels_->dot_cells(&levels.cells[first / 4 * levels.cell_stride], levels.cell_stride, dim / 16,
                                shape.block / 4, CoefSize::kWide, coefs_.data(), n_keys, rows.n, init_.data(),
                                acc_.data(), dim);
            for (size_t r = 0; r < rows.n; ++r) constants_[r] = steps_[r] * static_cast<float>(sums_[r]);
            kernels_->add_levels(acc_.data(), dim, rows.n, dim, steps_.data(), scale, offset, constants_.data(),
                                 nullptr, o, dim);
            continue;
        }
        if (!weighed) weigh_block(shape, block, n_keys, rows);
        for (size_t r = 0; r < rows.n; ++r) init_[r] = -shape.bias * sums_[r];
        kernels_->dot_cells(&levels.cells[first * 4], levels.cell_stride, padded_channels(shape, block) / 16,
                            n_keys / 4, CoefSize::kWide, coefs_.data(), n_keys, rows.n, init_.data(), acc_.data(), dim);
        add_sums(layout, shape, block, rows);
    }
}

/// acc_ is the block's sums of products with coefs of steps_, constants_ the weights' sums with the offsets.
void TileAttention::add_sums(const TileLayout& layout, const LevelShape& shape, size_t block,
                             const Rows& rows) noexcept {
    const size_t dim = shape_.padded_v();
    for (size_t r = 0; r < rows.n && layout.spec.transform != nullptr; ++r)
        p_packed_[rows.first + r] += tile_sums_[rows.first + r];
    kernels_->add_levels(acc_.data(), dim, rows.n, padded_channels(shape, block), steps_.data(), nullptr,
                         shape.has_offset ? ones().data() : nullptr, constants_.data(), nullptr,
                         &o_packed_[rows.first * dim + block * shape.block], dim);
}

}  // namespace kvaq
