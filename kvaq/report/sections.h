#pragma once

#include <optional>

#include "kvaq/report/document.h"
#include "kvaq/report/report_input.h"

namespace kvaq {

// One function and one file (section_*.cc) per section of the report: values in, text, tables and charts out. Nothing = the inputs do not hold
// what it shows. All rely on settle_model having been called.

[[nodiscard]] std::optional<Section> summary_section(const ReportInput& input);
[[nodiscard]] std::optional<Section> bits_section(const ReportInput& input);
[[nodiscard]] std::optional<Section> norms_section(const ReportInput& input);
[[nodiscard]] std::optional<Section> damage_section(const ReportInput& input);
[[nodiscard]] std::optional<Section> frontier_section(const ReportInput& input);
/// One of them per comparison; index counts from 0.
[[nodiscard]] std::optional<Section> eval_section(const ReportInput& input, size_t index);
[[nodiscard]] std::optional<Section> tasks_section(const ReportInput& input);
[[nodiscard]] std::optional<Section> memory_section(const ReportInput& input);
[[nodiscard]] std::optional<Section> speed_section(const ReportInput& input, size_t index);
[[nodiscard]] std::optional<Section> sources_section(const ReportInput& input);

/// The row of that comparison that measured the input's plan, by the plan's digest; in files that hold none, by name and exactly its bytes there.
[[nodiscard]] const EvalRow* row_of_plan(const EvalTable& table, const ReportInput& input);
/// A row of that name; null if there is none.
[[nodiscard]] const EvalRow* row_named(const EvalTable& table, const std::string& name);

/// Which family a compared cache belongs to.
enum class RowFamily { kMeasured, kPreset, kPaper, kLlama, kOther };
[[nodiscard]] RowFamily family_of(const EvalRow& row);

/// KL against bits of a comparison's rows, f16 and its control left out; `ours` is drawn larger in words only (marked in the table).
[[nodiscard]] Chart quality_chart(const EvalTable& table, const std::string& title);

/// Mean bits of one (layer, side, KV head) in a sealed tile: codes, scales and gains; what its bytes say.
[[nodiscard]] double stored_bits(const Plan& plan, const LayerPlan& layer, size_t head, Side side);

/// "Made by ..." under a section: the command, or the verb where the file does not say; `same` prints the same numbers.
[[nodiscard]] Paragraph made_by(const std::string& command, const std::string& verb, const std::string& same = "");

/// Both widths of a chart: draw(width) makes one.
template <class Draw>
Chart two_widths(std::string title, std::string says, const Draw& draw) {
    return {.title = std::move(title), .says = std::move(says), .wide = draw(1000.0), .narrow = draw(360.0)};
}

}  // namespace kvaq
