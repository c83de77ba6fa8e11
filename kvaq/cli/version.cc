#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "kvaq/base/simd_target.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/verbs.h"

namespace kvaq {

void add_version(CLI::App& app) {
    auto json = std::make_shared<std::string>();
    CLI::App* verb = app.add_subcommand("version", "print the version");
    verb->add_option("--json", *json, kJsonHelp);
    verb->callback([json] {
        require_outputs({json_file(*json)}, {});
        if (!json->empty()) {
            write_json(*json, json_text({{"schema_version", 1},
                                         {"kind", "kvaq.version"},
                                         {"version", KVAQ_VERSION},
                                         {"llama_cpp", KVAQ_LLAMA_VERSION},
                                         {"simd", to_string(best_simd_target())}}));
        }
        if (!is_stdout(*json)) std::puts("kvaq " KVAQ_VERSION);
    });
}

}  // namespace kvaq
