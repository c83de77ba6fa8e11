#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace kvaq {

/// What a report says, before it is HTML or Markdown. Values only; every text is plain (the renderers escape it).

/// A piece of running text. code: a command or file name, shown as typed. strong: what a reader must not miss.
struct Run {
    std::string text;
    bool code = false;
    bool strong = false;
};
using Paragraph = std::vector<Run>;

/// A cell of a table: the text that is read, and the number behind it, unrounded, where there is one.
struct Cell {
    Cell(std::string shown) : text(std::move(shown)) {}
    Cell(const char* shown) : text(shown) {}
    Cell(std::string shown, double number) : text(std::move(shown)), value(number) {}
    std::string text;
    std::optional<double> value;
    bool code = false;
};

/// The first cell of a row is its header.
struct Table {
    std::string caption;
    std::vector<std::string> columns;
    std::vector<std::vector<Cell>> rows;  ///< each as long as columns
    std::vector<size_t> marked;           ///< rows that the report is about
    bool folded = false;                  ///< behind its caption, to be opened
};

/// A picture with what it shows in words, and its numbers.
struct Chart {
    std::string title;
    std::string says;    ///< what a reader who does not see it must know; shown to everybody
    std::string wide;    ///< SVG of kvaq/report/svg.h
    std::string narrow;  ///< the same for a phone; empty: the wide one serves
};

/// Charts that stand side by side where there is room.
struct ChartRow {
    std::vector<Chart> charts;
};

/// One number that stands out.
struct KeyFigure {
    std::string label;
    std::string shown;
    double value = 0;
    std::string note;
};
struct KeyFigures {
    std::vector<KeyFigure> figures;
};

using Block = std::variant<Paragraph, Table, ChartRow, KeyFigures>;

struct Section {
    std::string id;  ///< letters and hyphens
    std::string title;
    std::vector<Block> blocks;
};

struct Document {
    std::string title;
    std::string subtitle;
    std::vector<Section> sections;
    Paragraph footer;
};

/// One self-contained page: no script, no font, no picture and nothing else is loaded (its own Content-Security-Policy forbids it); light or
/// dark as the reader prefers; also well-formed XML after the first line. Deterministic.
[[nodiscard]] std::string to_html(const Document& document);

/// The same for pasting into a thread: tables and text; of a chart, what it says.
[[nodiscard]] std::string to_markdown(const Document& document);

}  // namespace kvaq
