#include "kvaq/cli/program.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>
#include <vector>

#include "kvaq/base/error.h"
#include "kvaq/llama/attach.h"
#include "kvaq/llama/kvaq.h"
#include "kvaq/plan/plan.h"

namespace kvaq {
namespace {

namespace fs = std::filesystem;

bool is_program(const fs::path& path) { return access(path.c_str(), X_OK) == 0 && !fs::is_directory(path); }

/// The drop-in library is the one this program itself is linked to.
std::string library_path() {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(&kvaq_version), &info) == 0 || info.dli_fname == nullptr) {
        throw Error(ErrorCode::kNotFound, "cannot find libkvaq-llama.so");
    }
    const std::string path = fs::canonical(info.dli_fname).string();
    if (path.find_first_of(" :") != std::string::npos) {
        throw Error(ErrorCode::kUnsupported, "the loader splits LD_PRELOAD at spaces and colons",
                    "kvaq installed in a folder without them", path, "Move the installation; it finds its parts again");
    }
    return path;
}

}  // namespace

fs::path find_program(const std::string& name, bool any_program) {
    if (name.find('/') != std::string::npos) return name;
    if (const char* folder = std::getenv("KVAQ_LLAMA_BIN"); folder != nullptr && *folder != '\0') {
        if (is_program(fs::path(folder) / name)) return fs::path(folder) / name;
        if (!any_program) {
            throw Error(ErrorCode::kNotFound, "llama.cpp's program is not in KVAQ_LLAMA_BIN", name,
                        "no such program in '" + std::string(folder) + "'",
                        "Correct KVAQ_LLAMA_BIN or unset it: it is the folder that holds llama-server");
        }
    }
    const fs::path own = fs::read_symlink("/proc/self/exe").parent_path();
    std::vector<fs::path> folders = {own.parent_path() / KVAQ_LLAMA_PLACE / "bin", own};
    if (const char* path = std::getenv("PATH")) {
        std::stringstream parts{std::string(path)};
        for (std::string part; std::getline(parts, part, ':');) folders.emplace_back(part);
    }
    for (const fs::path& folder : folders) {
        if (is_program(folder / name)) return folder / name;
    }
    throw Error(ErrorCode::kNotFound, any_program ? "no such program" : "llama.cpp's program is not installed", name,
                "nothing of that name in " + folders[0].string() + ", " + folders[1].string() + " or PATH",
                any_program
                    ? "Give its path, or add its folder to PATH"
                    : "Set KVAQ_LLAMA_BIN to the folder that holds it (of the llama.cpp that kvaq was built for)");
}

std::string preload_value() {
    const char* others = std::getenv("LD_PRELOAD");
    return library_path() + (others != nullptr && *others != '\0' ? std::string(":") + others : "");
}

std::string plan_value(const std::string& plan) {
    (void)plan_factory(plan);
    return is_preset(plan) ? plan : fs::absolute(plan).string();
}

}  // namespace kvaq
