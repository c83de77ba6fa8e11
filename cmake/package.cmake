# Debian packages by CPack (scripts/package_deb.sh): kvaq (program, drop-in, llama.cpp) and libkvaq-dev. docs/packages.md.
set(CPACK_PACKAGE_NAME kvaq)
set(CPACK_PACKAGE_VENDOR "KV-AdaQuant")
set(CPACK_PACKAGE_CONTACT "KV-AdaQuant developers <kvaq@localhost>")
set(CPACK_PACKAGE_VERSION "${PROJECT_VERSION}")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "packed mixed-precision KV cache for llama.cpp programs")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_GENERATOR DEB)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL runtime dev)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION misc)
set(CPACK_DEBIAN_PACKAGE_HOMEPAGE "https://arxiv.org/abs/2502.15075")

set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME kvaq)
set(CPACK_DEBIAN_RUNTIME_DESCRIPTION "packed mixed-precision KV cache for llama.cpp programs
 Measures a model's keys, values and queries, decides under a byte budget how
 many bits each layer, side and head of the KV cache gets, and serves unmodified
 llama.cpp programs from a packed cache, on the CPU.
 .
 Holds the llama.cpp that it was built for (llama-server, llama-cli,
 llama-completion, llama-perplexity, llama-bench) in /usr/lib/kvaq/llama.cpp.")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS "${CMAKE_LIBRARY_OUTPUT_DIRECTORY}" "${KVAQ_LLAMA_LIB_DIR}")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA "${CMAKE_SOURCE_DIR}/packaging/debian/triggers")

set(CPACK_DEBIAN_DEV_PACKAGE_NAME libkvaq-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_DESCRIPTION "headers, static core and CMake files of kvaq
 find_package(kvaq) gives kvaq::llama (C API of the drop-in), kvaq::llama_cpp and
 kvaq::core (quantizers, plans, cache and attention).")
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "kvaq (= ${PROJECT_VERSION})")
include(CPack)
