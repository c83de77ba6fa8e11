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

void require_writable(const std::string& path) {
    if (path.empty()) return;
    namespace fs = std::filesystem;
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) {
        throw Error(ErrorCode::kIo, "cannot write the output", "the name of a file", "the folder '" + path + "'");
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

void require_json(const std::string& json) {
    if (!is_stdout(json)) require_writable(json);
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

}  // namespace kvaq
