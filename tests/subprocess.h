#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace kvaq {

/// A folder under the system's temporary one, gone with its owner.
class TemporaryFolder {
  public:
    TemporaryFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "kvaq_test_XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr)
            throw std::runtime_error("mkdtemp: " + std::string(std::strerror(errno)));
        path_ = name;
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }
    [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
    [[nodiscard]] const std::string& path() const noexcept { return path_; }

  private:
    std::string path_;
};

struct ProcessOptions {
    std::map<std::string, std::string> env;  ///< added to ours; KVAQ_PLAN and LD_PRELOAD of ours never reach the child
    int timeout_seconds = 120;
    size_t address_space = 0;  ///< bytes of `ulimit -v`; 0 = no limit
};

struct ProcessResult {
    int exit_code = 0;       ///< 128 + signal if one ended it
    bool timed_out = false;  ///< then it was killed
    std::string out;
    std::string err;
};

/// A child process; stdout and stderr go to files, so that it never blocks on a full pipe. Killed if its owner forgets it.
class Process {
  public:
    explicit Process(const std::vector<std::string>& command, const ProcessOptions& options = {})
        : deadline_(std::chrono::steady_clock::now() + std::chrono::seconds(options.timeout_seconds)) {
        std::vector<std::string> args = command;
        std::vector<char*> argv;
        for (std::string& arg : args) argv.push_back(arg.data());
        argv.push_back(nullptr);
        const std::string out = folder_.file("out");
        const std::string err = folder_.file("err");
        pid_ = ::fork();
        if (pid_ < 0) throw std::runtime_error("fork: " + std::string(std::strerror(errno)));
        if (pid_ > 0) return;
        ::unsetenv("KVAQ_PLAN");
        ::unsetenv("LD_PRELOAD");
        for (const auto& [name, value] : options.env) ::setenv(name.c_str(), value.c_str(), 1);
        ::dup2(::open("/dev/null", O_RDONLY), 0);
        ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0600), 1);
        ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT, 0600), 2);
        if (options.address_space > 0) {
            const rlimit limit{options.address_space, options.address_space};
            ::setrlimit(RLIMIT_AS, &limit);
        }
        ::execvp(argv[0], argv.data());
        ::_exit(127);
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;
    ~Process() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }

    void send(int signal) const { ::kill(pid_, signal); }
    [[nodiscard]] bool running() { return !reaped_ && !reap(WNOHANG); }
    /// What it wrote to stderr up to now.
    [[nodiscard]] std::string stderr_so_far() const { return text_of(folder_.file("err")); }

    /// Waits for the end, at most until the timeout.
    [[nodiscard]] ProcessResult wait() {
        ProcessResult result;
        while (running()) {
            if (std::chrono::steady_clock::now() > deadline_) {
                result.timed_out = true;
                send(SIGKILL);
                reap(0);
                break;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        result.exit_code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
        result.out = text_of(folder_.file("out"));
        result.err = text_of(folder_.file("err"));
        return result;
    }

  private:
    bool reap(int flags) {
        const pid_t done = ::waitpid(pid_, &status_, flags);
        if (done != pid_) return false;
        reaped_ = true;
        pid_ = -1;
        return true;
    }
    static std::string text_of(const std::string& path) {
        std::ostringstream text;
        text << std::ifstream(path, std::ios::binary).rdbuf();
        return text.str();
    }

    TemporaryFolder folder_;
    std::chrono::steady_clock::time_point deadline_;
    pid_t pid_ = -1;
    int status_ = 0;
    bool reaped_ = false;
};

[[nodiscard]] inline ProcessResult run_process(const std::vector<std::string>& command,
                                               const ProcessOptions& options = {}) {
    return Process(command, options).wait();
}

/// Lines of a text that start so.
[[nodiscard]] inline std::vector<std::string> lines_starting(const std::string& text, const std::string& start) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
        if (line.rfind(start, 0) == 0) lines.push_back(line);
    }
    return lines;
}

}  // namespace kvaq
