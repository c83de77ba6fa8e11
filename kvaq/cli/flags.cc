#include "kvaq/cli/flags.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"

namespace kvaq {

namespace {

namespace fs = std::filesystem;

void require_writable(const std::string& path) {
    std::error_code ignored;
    if (path == "-")
        throw Error(ErrorCode::kIo, "cannot write the output", "the name of a file", "'-'",
                    "Only --json takes - for stdout");
    if (fs::is_directory(path, ignored)) {
        throw Error(ErrorCode::kIo, "cannot write the output", "the name of a file", "the folder '" + path + "'");
    }
    if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored)) {
        throw Error(ErrorCode::kIo, "cannot write '" + path + "'", "a file", "a device or pipe",
                    "Only --json takes - for stdout");
    }
    fs::path folder = fs::path(path).parent_path();
    if (folder.empty()) folder = ".";
    if (!fs::is_directory(folder, ignored)) {
        throw Error(ErrorCode::kIo, "cannot write '" + path + "'", "an existing folder",
                    "no folder '" + folder.string() + "'", "Make it first");
    }
    if (access(folder.c_str(), W_OK | X_OK) != 0) {
        throw Error(ErrorCode::kIo, "cannot write '" + path + "'", "a folder that may be written to",
                    std::strerror(errno));
    }
}

/// By name, or by what links lead to.
bool same_file(const std::string& a, const std::string& b) {
    std::error_code none;
    if (fs::equivalent(a, b, none)) return true;
    return fs::weakly_canonical(fs::absolute(a), none) == fs::weakly_canonical(fs::absolute(b), none);
}

}  // namespace

void require_outputs(const std::vector<std::string>& outputs, const std::vector<std::string>& inputs) {
    for (size_t i = 0; i < outputs.size(); ++i) {
        if (outputs[i].empty()) continue;
        require_writable(outputs[i]);
        std::error_code none;
        for (const std::string& input : inputs) {
            if (!input.empty() && fs::exists(input, none) && same_file(outputs[i], input))
                throw Error(ErrorCode::kIo, "the output would overwrite what is read", "another name",
                            "'" + outputs[i] + "'");
        }
        for (size_t j = 0; j < i; ++j) {
            if (!outputs[j].empty() && same_file(outputs[i], outputs[j]))
                throw Error(ErrorCode::kIo, "two outputs of one name", "a file for each", "'" + outputs[i] + "' twice");
        }
    }
}

void write_json(const std::string& json, std::string_view text) {
    if (json.empty()) return;
    if (!is_stdout(json)) return atomic_write_text(json, text);
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
        throw Error(ErrorCode::kIo, "cannot write to stdout", "", std::strerror(errno));
}

std::string json_text(const nlohmann::ordered_json& json) {
    return json.dump(2, ' ', true, nlohmann::json::error_handler_t::replace) + "\n";
}

int32_t default_threads() noexcept {
    return static_cast<int32_t>(std::max(1U, std::min(512U, std::thread::hardware_concurrency())));
}

std::string quoted(const std::string& word) {
    if (!word.empty() &&
        word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./,:=+-@%") ==
            std::string::npos)
        return word;
    std::string out = "'";
    for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
}

namespace {
std::string the_command_line;
}

void set_command_line(const std::vector<std::string>& args) {
    the_command_line = "kvaq";
    for (const std::string& arg : args) the_command_line += " " + quoted(arg);
}

const std::string& command_line() noexcept { return the_command_line; }

}  // namespace kvaq
