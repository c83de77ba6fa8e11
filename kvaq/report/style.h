#pragma once

#include <array>
#include <cstddef>
#include <string>

namespace kvaq {

/// Colours of one of the two modes, "#rrggbb". Tests hold text to a contrast of 4.5 and marks to 3 against what is behind them (WCAG 2.2).
struct Palette {
    const char* page;     ///< behind everything
    const char* surface;  ///< of charts, key figures and table heads
    const char* ink;      ///< text
    const char* soft;     ///< second text: notes, axis labels
    const char* grid;     ///< lines that may be overlooked
    const char* link;
    const char* marked;                   ///< behind the row that the report is about
    std::array<const char*, 5> series;    ///< told apart with colour blindness too; also by shape and dash
    std::array<const char*, 9> ramp;      ///< of the heat map, few bits first
    std::array<const char*, 9> ramp_ink;  ///< text on them
};
inline constexpr size_t kSeriesColours = 5;
inline constexpr size_t kRampSteps = 9;

[[nodiscard]] const Palette& light_palette() noexcept;
[[nodiscard]] const Palette& dark_palette() noexcept;

/// CSS custom properties of both palettes and the rules of the page (not of its charts).
[[nodiscard]] std::string page_style();
/// Rules of the SVGs in kvaq/report: they name classes only, so that one style serves all of them and both modes.
[[nodiscard]] std::string chart_style();
/// The custom properties alone, for a chart that is its own file.
[[nodiscard]] std::string palette_style();

}  // namespace kvaq
