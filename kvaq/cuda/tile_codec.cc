#include "kvaq/cuda/tile_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kvaq/base/error.h"
#include "kvaq/quant/affine.h"
#include "kvaq/quant/bit_planes.h"
#include "kvaq/quant/transform.h"
#include "kvaq/quant/trellis.h"

namespace kvaq::cuda {
namespace {

constexpr uint8_t kOneColumn = 31;
constexpr size_t kCell = 64;

uint8_t shift_of(size_t n) noexcept { return static_cast<uint8_t>(std::countr_zero(n)); }

TileBand band_of(const TileLayout& layout, const Band& band) {
    TileBand out;
    out.first_channel = band.first_channel;
    out.n_channels = band.n_channels;
    out.trellis = band.coding == BandCoding::kTrellis;
    if (band.coding == BandCoding::kFloat16 || static_cast<int>(band.bits) == 0) return out;
    auto offset = static_cast<uint32_t>(band.codes_offset);
    if (band.bits == CodeBits::kTernary) {
        out.ternary = true;
        out.planes[0] = {.offset = offset, .bits = 8};
        out.ternary_bytes = static_cast<uint32_t>(band.codes_bytes);
        return out;
    }
    out.bits = static_cast<uint8_t>(band.bits);
    size_t plane = 0;
    for (const uint8_t bits : plane_bits(band.bits)) {
        if (bits == 0) break;
        out.planes[plane++] = {.offset = offset, .bits = bits, .log_cells = shift_of(8U / bits)};
        const size_t bytes = band_codes(layout, band) * bits / 8;
        offset += static_cast<uint32_t>((bytes + kCell - 1) / kCell * kCell);
    }
    return out;
}

/// U as int8 rows with a step each, as TransformFit keeps kMatrix; nothing of Hadamard bases.
struct DenseBasis {
    std::vector<int8_t> matrix;
    std::vector<float> row_scale;
};

/// The kernels multiply by sorted bases as by any matrix: exactly, since they are 0 and +-1 times a step.
DenseBasis dense_basis_of(const TransformFit& fit) {
    if (fit.basis != TransformBasis::kSorted) return {fit.matrix, fit.row_scale};
    DenseBasis dense{.matrix = std::vector<int8_t>(fit.dim * fit.dim), .row_scale = std::vector<float>(fit.dim)};
    std::vector<float> x(fit.dim);
    std::vector<float> z(fit.dim);
    for (size_t j = 0; j < fit.dim; ++j) {
        std::fill(x.begin(), x.end(), 0.0F);
        x[j] = 1;
        to_codec_channels(fit, x.data(), z.data());
        for (size_t i = 0; i < fit.dim; ++i) {
            if (z[i] == 0.0F) continue;
            dense.row_scale[i] = std::fabs(z[i]);
            dense.matrix[fit.side == Side::kKey ? j * fit.dim + i : i * fit.dim + j] = z[i] > 0 ? 1 : -1;
        }
    }
    return dense;
}

}  // namespace

TileCodec tile_codec_of(const TileLayout& layout, size_t place) {
    TileCodec codec;
    codec.place = static_cast<uint32_t>(place);
    codec.bytes = static_cast<uint32_t>(layout.bytes);
    KVAQ_CHECK(!layout.bands.empty() && layout.bands.size() <= kMaxBands);
    for (const Band& band : layout.bands) codec.bands[codec.n_bands++] = band_of(layout, band);
    if (layout.spec.transform != nullptr) {
        codec.store = Store::kTransform;
        codec.basis =
            layout.spec.transform->fit->basis == TransformBasis::kHadamard ? BasisKind::kHadamard : BasisKind::kMatrix;
        codec.gains = static_cast<uint32_t>(layout.gain_offset);
        return codec;
    }
    if (layout.spec.basis == Basis::kHadamard) codec.basis = BasisKind::kHadamard;
    const Band& band = layout.bands[0];
    if (band.coding == BandCoding::kFloat16) return codec;
    codec.store = Store::kAffine;
    codec.per_channel = band.group_channels == 1;
    codec.symmetric = layout.spec.symmetric;
    codec.symmetric_offset = static_cast<float>(symmetric_offset(band.bits));
    codec.scales = static_cast<uint32_t>(band.scale_offset);
    codec.offsets = static_cast<uint32_t>(band.offset_offset);
    codec.n_channel_blocks = band.n_channel_blocks;
    codec.token_shift = shift_of(band.group_tokens);
    KVAQ_CHECK(std::has_single_bit(band.group_tokens));
    KVAQ_CHECK(band.n_channel_blocks == 1 || std::has_single_bit(band.group_channels));
    codec.channel_shift = band.n_channel_blocks == 1 ? kOneColumn : shift_of(band.group_channels);
    return codec;
}

size_t query_groups(const TileCodec& keys, size_t head_dim) {
    const size_t plain = (head_dim + 15) / 16;
    if (keys.store != Store::kTransform) return plain;
    size_t banded = 0;
    for (size_t i = 0; i < keys.n_bands; ++i) {
        if (keys.bands[i].bits > 0) banded += (keys.bands[i].n_channels + 15U) / 16;
    }
    return std::max(plain, banded);
}

CodecTables codec_tables_of(const CodecSpec& spec) {
    CodecTables tables;
    if (spec.transform == nullptr) return tables;
    const TransformFit& fit = *spec.transform->fit;
    const auto put = [&tables](const void* data, size_t n) {
        const size_t at = tables.bytes.size();
        tables.bytes.resize(at + (n + 15) / 16 * 16);
        if (n > 0) std::memcpy(tables.bytes.data() + at, data, n);
        return at;
    };
    put(fit.scale.data(), fit.scale.size() * sizeof(float));
    tables.channel_offset = put(fit.offset.data(), fit.offset.size() * sizeof(float));
    const DenseBasis basis = dense_basis_of(fit);
    tables.row_scale = put(basis.row_scale.data(), basis.row_scale.size() * sizeof(float));
    tables.matrix = put(basis.matrix.data(), basis.matrix.size());
    std::vector<int8_t> levels;
    for (size_t bits = 1; bits < fit.levels.size(); ++bits)
        levels.insert(levels.end(), fit.levels[bits].begin(), fit.levels[bits].end());
    tables.levels = put(levels.data(), levels.size());
    return tables;
}

std::vector<int8_t> trellis_table() {
    std::vector<int8_t> table;
    for (unsigned bits = 1; bits <= kTrellisMostBits; ++bits)
        table.insert(table.end(), trellis_outputs(bits).begin(), trellis_outputs(bits).end());
    return table;
}

}  // namespace kvaq::cuda
