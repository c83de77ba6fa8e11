#pragma once

#include <string>

namespace kvaq {

/// Pieces that the charts share. Colours are classes of chart_style() (kvaq/report/style.h): c0..c4 for series, q0..q8 for the heat map.

struct SvgFrame {
    std::string label;  ///< for readers who do not see it
    double width = 0;
    double height = 0;
    std::string body;
};

/// An <svg> for use inside a page that has palette_style() and chart_style().
[[nodiscard]] std::string svg_inline(const SvgFrame& frame);
/// The same as a file of its own, style included.
[[nodiscard]] std::string svg_file(const SvgFrame& frame);

/// Text at a place. anchor: "", "mid" or "end"; soft: second in rank.
struct SvgText {
    double x = 0;
    double y = 0;
    std::string text;
    std::string anchor;
    bool soft = false;
    double size = 12;
    std::string more;  ///< further classes
};
[[nodiscard]] std::string svg_text(const SvgText& text);

/// A mark of its series' own shape (circle, square, triangle, diamond, cross) and colour, with a text that shows on hover ("" = none).
[[nodiscard]] std::string svg_mark(size_t series, double x, double y, const std::string& hover, double radius = 4.5);
/// Dashes of its series' line, as an attribute or nothing.
[[nodiscard]] std::string svg_dash(size_t series);
/// A coordinate in at most two decimals.
[[nodiscard]] std::string svg_number(double value);
/// Room that a text of that size takes, roughly (no fonts are measured), for keeping labels apart.
[[nodiscard]] double text_width(const std::string& text, double size) noexcept;

}  // namespace kvaq
