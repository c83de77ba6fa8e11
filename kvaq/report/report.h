#pragma once

#include "kvaq/report/document.h"
#include "kvaq/report/report_input.h"

namespace kvaq {

/// The whole report. Sections appear only for what was given. Calls settle_model; throws as it does.
[[nodiscard]] Document make_report(ReportInput input);

}  // namespace kvaq
