// HTTP is cpp-httplib's work. llama-server carries its own copy in shared libraries and exports it, and LD_PRELOAD puts our symbols
// first: the build renames our copy's namespace (-Dhttplib=kvaq_httplib), so neither can be taken for the other
// (test: DropIn.ExportsNoSymbolThatAProgramMayBringItself).
#include "kvaq/llama/metrics_server.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "kvaq/base/error.h"
#include "kvaq/llama/metrics_address.h"

#ifdef KVAQ_WITH_METRICS
#include <pthread.h>
#include <signal.h>

#include <cerrno>
#include <cstring>

#include "httplib.h"
#endif

namespace kvaq {
namespace {

/// Process-wide, as llama.cpp's contexts are: guarded by the mutex.
struct Listed {
    std::mutex mutex;
    size_t n_ever = 0;
    std::vector<NumberedMetrics> contexts;
};

Listed& listed() {
    static Listed listed;
    return listed;
}

#ifdef KVAQ_WITH_METRICS

/// No signal is handled on the threads made while this lives: a program's handler may exit, which waits for those threads.
class BlockedSignals {
  public:
    BlockedSignals() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    BlockedSignals(const BlockedSignals&) = delete;
    BlockedSignals& operator=(const BlockedSignals&) = delete;

  private:
    sigset_t before_ = {};
};

class MetricsServer {
  public:
    explicit MetricsServer(const std::string& text) : address_(parse_metrics_address(text)) {
        server_.new_task_queue = [] { return new httplib::ThreadPool(1, 2); };
        // Not httplib's SO_REUSEPORT: two servers would share the port unnoticed.
        server_.set_socket_options([](int socket) { httplib::set_socket_opt(socket, SOL_SOCKET, SO_REUSEADDR, 1); });
        server_.set_keep_alive_max_count(1);  // a client that stays connected must not occupy the thread
        server_.set_read_timeout(5);
        server_.set_write_timeout(5);
        server_.set_payload_max_length(1024);
        server_.Get("/metrics", [](const httplib::Request&, httplib::Response& answer) {
            std::vector<NumberedMetrics> contexts;
            {
                const std::lock_guard lock(listed().mutex);
                contexts = listed().contexts;
            }
            answer.set_content(prometheus_text(contexts), "text/plain; version=0.0.4; charset=utf-8");
        });
        errno = 0;
        port_ = address_.port;
        if (address_.port == 0) {
            port_ = server_.bind_to_any_port(address_.host);
        } else if (!server_.bind_to_port(address_.host, address_.port)) {
            port_ = -1;
        }
        if (port_ < 0) {
            throw Error(ErrorCode::kIo, "cannot serve metrics at " + text, "a free address of this machine",
                        errno != 0 ? std::strerror(errno) : "one in use",
                        "Choose another port for --kv-metrics (KVAQ_METRICS); 0 takes any free one");
        }
        const BlockedSignals blocked;
        thread_ = std::thread([this] { server_.listen_after_bind(); });
        server_.wait_until_ready();
    }
    ~MetricsServer() {
        server_.stop();
        thread_.join();
    }
    MetricsServer(const MetricsServer&) = delete;
    MetricsServer& operator=(const MetricsServer&) = delete;
    [[nodiscard]] std::string url() const { return address_.url(port_); }

  private:
    MetricsAddress address_;
    int port_ = 0;
    httplib::Server server_;
    std::thread thread_;
};

#endif

}  // namespace

std::string start_metrics_server() {
    const char* text = std::getenv("KVAQ_METRICS");
    if (text == nullptr || *text == '\0') return "";
#ifdef KVAQ_WITH_METRICS
    (void)listed();  // made before the server, gone after it
    static std::mutex mutex;
    static std::unique_ptr<MetricsServer> server;
    const std::lock_guard lock(mutex);
    if (server != nullptr) return "";
    server = std::make_unique<MetricsServer>(text);
    return server->url();
#else
    (void)parse_metrics_address(text);
    throw Error(
        ErrorCode::kUnsupported, "this build serves no metrics", "cpp-httplib, which llama.cpp's source brings", "none",
        "Build with -DKVAQ_HTTPLIB_DIR=<llama.cpp>/vendor/cpp-httplib, or leave out --kv-metrics (KVAQ_METRICS)");
#endif
}

void list_metrics(std::shared_ptr<const ContextMetrics> metrics) {
    Listed& all = listed();
    const std::lock_guard lock(all.mutex);
    all.contexts.push_back({.number = all.n_ever++, .metrics = std::move(metrics)});
}

void unlist_metrics(const ContextMetrics* metrics) {
    Listed& all = listed();
    const std::lock_guard lock(all.mutex);
    std::erase_if(all.contexts, [&](const NumberedMetrics& context) { return context.metrics.get() == metrics; });
}

}  // namespace kvaq
