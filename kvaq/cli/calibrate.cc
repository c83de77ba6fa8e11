#include "kvaq/cli/verbs.h"
namespace kvaq { void add_calibrate(CLI::App&){} void add_plan(CLI::App&){} }
