#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kvaq/eval/suite_task.h"

namespace kvaq {

/// The results file of a suite: JSON lines, first what was compared, then a line for every task's settings and for every finished item. A line is appended
/// at once when its
/// item is done; a last line that was cut off is dropped when the file is opened again. One process at a time.
class SuiteFile {
  public:
    /// head: model, caches and whatever else every task depends on. An empty path: nothing is kept.
    /// Throws Error kMismatch (the file is of another head: which key), kCorrupt (no such file's content, with the line), kIo.
    SuiteFile(std::string path, const nlohmann::ordered_json& head);

    /// Items of a task that the file holds. Throws Error kMismatch when they were made with other settings (which key).
    [[nodiscard]] std::map<size_t, std::vector<ItemScore>> open_task(const std::string& task,
                                                                     const nlohmann::ordered_json& settings);
    /// Throws Error kIo.
    void append(const std::string& task, size_t item, const std::vector<ItemScore>& scores);

  private:
    void append_line(const nlohmann::ordered_json& line);

    std::string path_;
    std::map<std::string, nlohmann::ordered_json> settings_;
    std::map<std::string, std::map<size_t, std::vector<ItemScore>>> items_;
};

}  // namespace kvaq
