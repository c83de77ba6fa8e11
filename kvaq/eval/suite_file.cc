#include "kvaq/eval/suite_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"

namespace kvaq {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kKind = "kvaq.suite.items";
constexpr int kSchemaVersion = 1;

std::string one_line(const Json& json) {  // bytes that are no UTF-8 (a text cut inside a letter) are replaced
    return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json to_json(const std::vector<ItemScore>& scores) {
    Json out = Json::array();
    for (const ItemScore& score : scores) {
        Json observations = Json::array();
        for (const Observation& o : score.observations) observations.push_back({o.group, o.at, o.weight, o.values});
        out.push_back({{"observations", observations}, {"text", score.text}});
    }
    return out;
}

std::vector<ItemScore> scores_from(const Json& json) {
    std::vector<ItemScore> scores;
    for (const Json& one : json) {
        ItemScore score{.observations = {}, .text = one.at("text")};
        for (const Json& o : one.at("observations")) {
            Observation out{.group = o.at(0), .at = o.at(1), .weight = o.at(2), .values = {}};
            for (const Json& value : o.at(3))
                out.values.push_back(value.is_null() ? std::nan("") : value.get<double>());
            score.observations.push_back(std::move(out));
        }
        scores.push_back(std::move(score));
    }
    return scores;
}

/// Throws kMismatch with the first key whose values differ.
void expect_same(const Json& wanted, const Json& found, const std::string& path, const std::string& of) {
    const auto shown = [](const Json& json, const std::string& key) {
        return json.contains(key) ? key + " " + json[key].dump() : "no " + key;
    };
    for (const Json* one : {&wanted, &found}) {
        for (const auto& [key, value] : one->items()) {
            if (wanted.contains(key) && found.contains(key) && wanted[key] == found[key]) continue;
            throw Error(
                ErrorCode::kMismatch, fmt::format("the results in '{}' were made with other settings{}", path, of),
                shown(wanted, key), shown(found, key), "Go on with the same settings, or give --results another name");
        }
    }
}

}  // namespace

SuiteFile::SuiteFile(std::string path, const nlohmann::ordered_json& head) : path_(std::move(path)) {
    if (path_.empty()) return;
    Json first = {{"kind", kKind}, {"schema_version", kSchemaVersion}};
    first.update(head);
    if (!std::filesystem::exists(path_) || std::filesystem::file_size(path_) == 0) {
        atomic_write_text(path_, one_line(first));
        return;
    }
    const std::vector<std::byte> bytes = read_file(path_);
    std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const size_t end = text.rfind('\n');
    if (end != std::string::npos && end + 1 < text.size()) {  // an interrupted write
        text.resize(end + 1);
        atomic_write_text(path_, text);
    }
    size_t number = 0;
    for (size_t at = 0; at < text.size();) {
        const size_t stop = std::min(text.find('\n', at), text.size());
        const Json line = Json::parse(text.substr(at, stop - at), nullptr, false);
        at = stop + 1;
        ++number;
        if (number == 1) {
            if (!line.is_object() || line.value("kind", "") != kKind) {
                throw Error(ErrorCode::kCorrupt, fmt::format("'{}' is no results file of kvaq eval --task", path_),
                            "a file that it wrote, or none", "something else", "Give --results another name");
            }
            expect_same(first, line, path_, "");
            continue;
        }
        try {
            const std::string task = line.at("task");
            if (line.contains("settings")) {
                settings_[task] = line["settings"];
            } else {
                items_[task][line.at("item").get<size_t>()] = scores_from(line.at("scores"));
            }
        } catch (const Json::exception& error) {
            throw Error(ErrorCode::kCorrupt, fmt::format("line {} of '{}' is damaged", number, path_),
                        "a task or an item", error.what(), "Delete the line, or the file to start again");
        }
    }
}

std::map<size_t, std::vector<ItemScore>> SuiteFile::open_task(const std::string& task,
                                                              const nlohmann::ordered_json& settings) {
    if (path_.empty()) return {};
    const auto known = settings_.find(task);
    if (known == settings_.end()) {
        append_line({{"task", task}, {"settings", settings}});
        settings_[task] = settings;
    } else {
        expect_same(settings, known->second, path_, " of " + task);
    }
    return items_[task];
}

void SuiteFile::append(const std::string& task, size_t item, const std::vector<ItemScore>& scores) {
    if (path_.empty()) return;
    append_line({{"task", task}, {"item", item}, {"scores", to_json(scores)}});
}

void SuiteFile::append_line(const nlohmann::ordered_json& line) {
    const std::string text = one_line(line);
    const int file = ::open(path_.c_str(), O_WRONLY | O_APPEND);
    const bool opened = file >= 0;
    const bool written = opened && ::write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                         ::fdatasync(file) == 0;
    const int reason = errno;
    if (opened) ::close(file);
    if (!written) throw Error(ErrorCode::kIo, "cannot write '" + path_ + "'", "", std::strerror(reason));
}

}  // namespace kvaq
