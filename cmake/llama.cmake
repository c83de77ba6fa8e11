# Finds the llama.cpp that the drop-in is built against and refuses, in words, one that it does not fit.

# kvaq_find_llama(): sets KVAQ_LLAMA_FOUND, KVAQ_LLAMA_VERSION, KVAQ_LLAMA_{BIN_DIR,LIB_DIR,INCLUDES} and makes the target kvaq_llama_cpp.
# KVAQ_LLAMA_DIR is a prefix (bin, lib, include), a build tree of llama.cpp, or "none" (core only). A folder without llama.cpp is
# an error, but for the default one: the core builds without it.
macro(kvaq_find_llama)
  set(KVAQ_LLAMA_FOUND FALSE)
  if(NOT KVAQ_LLAMA_DIR STREQUAL "none")
    get_filename_component(KVAQ_LLAMA_DIR "${KVAQ_LLAMA_DIR}" ABSOLUTE)
  endif()
  set(KVAQ_LLAMA_VERSION "0.5.0")  # kvaq/llama is written against this version's public functions and node names
  set(KVAQ_LLAMA_BIN_DIR "${KVAQ_LLAMA_DIR}/bin")
  set(kvaq_llama_wanted "wanted a shared libllama of version ${KVAQ_LLAMA_VERSION}")
  set(kvaq_llama_hint "scripts/bootstrap.sh builds the pinned one in .deps/llama; -DKVAQ_LLAMA_DIR=none builds the core only")
  if(EXISTS "${KVAQ_LLAMA_DIR}/include/llama.h")
    set(kvaq_llama_includes "${KVAQ_LLAMA_DIR}/include")
    set(KVAQ_LLAMA_INCLUDES "${KVAQ_LLAMA_DIR}/include/")
    set(KVAQ_LLAMA_FOUND TRUE)
  elseif(EXISTS "${KVAQ_LLAMA_DIR}/CMakeCache.txt")
    load_cache("${KVAQ_LLAMA_DIR}" READ_WITH_PREFIX kvaq_tree_ llama.cpp_SOURCE_DIR)
    set(kvaq_llama_source "${kvaq_tree_llama.cpp_SOURCE_DIR}")
    set(KVAQ_INSTALL_LLAMA OFF)  # a build tree's libraries are found by absolute paths
    if(EXISTS "${kvaq_llama_source}/include/llama.h")
      set(kvaq_llama_includes "${kvaq_llama_source}/include" "${kvaq_llama_source}/ggml/include")
      set(KVAQ_LLAMA_FOUND TRUE)
    endif()
  endif()
  if(NOT KVAQ_LLAMA_FOUND AND NOT KVAQ_LLAMA_DIR STREQUAL "none" AND NOT KVAQ_LLAMA_DIR STREQUAL "${CMAKE_SOURCE_DIR}/.deps/llama")
    message(FATAL_ERROR "kvaq: no llama.cpp in KVAQ_LLAMA_DIR: wanted a prefix with include/llama.h or a build tree of llama.cpp, "
      "found neither in '${KVAQ_LLAMA_DIR}'. Hint: ${kvaq_llama_hint}.")
  endif()
  if(KVAQ_LLAMA_FOUND)
    find_library(KVAQ_LIBLLAMA NAMES libllama.so PATHS "${KVAQ_LLAMA_DIR}" NO_DEFAULT_PATH NO_CACHE
      PATH_SUFFIXES lib lib64 "lib/${CMAKE_LIBRARY_ARCHITECTURE}" bin)
    if(NOT KVAQ_LIBLLAMA)
      message(FATAL_ERROR "kvaq: llama.cpp in '${KVAQ_LLAMA_DIR}' does not fit: ${kvaq_llama_wanted}, found no libllama.so (was it "
        "built with -DBUILD_SHARED_LIBS=ON?). Hint: ${kvaq_llama_hint}.")
    endif()
    # The library's file name carries the version: libllama.so -> libllama.so.0 -> libllama.so.0.5.0.
    get_filename_component(kvaq_libllama_file "${KVAQ_LIBLLAMA}" REALPATH)
    get_filename_component(kvaq_libllama_name "${kvaq_libllama_file}" NAME)
    get_filename_component(KVAQ_LLAMA_LIB_DIR "${KVAQ_LIBLLAMA}" DIRECTORY)
    if(NOT kvaq_libllama_name STREQUAL "libllama.so.${KVAQ_LLAMA_VERSION}")
      message(FATAL_ERROR "kvaq: llama.cpp in '${KVAQ_LLAMA_DIR}' does not fit: ${kvaq_llama_wanted}, found ${kvaq_libllama_name}. "
        "Hint: ${kvaq_llama_hint}.")
    endif()
    add_library(kvaq_llama_cpp INTERFACE)
    target_include_directories(kvaq_llama_cpp SYSTEM INTERFACE ${kvaq_llama_includes})
    target_link_directories(kvaq_llama_cpp INTERFACE "${KVAQ_LLAMA_LIB_DIR}")
    target_link_libraries(kvaq_llama_cpp INTERFACE llama ggml ggml-base ggml-cpu)
    target_link_options(kvaq_llama_cpp INTERFACE "-Wl,-rpath-link,${KVAQ_LLAMA_LIB_DIR}")
    message(STATUS "kvaq: llama.cpp ${KVAQ_LLAMA_VERSION} in ${KVAQ_LLAMA_DIR}")
    # cpp-httplib, for metrics: llama.cpp's source brings it. Debian's package is a shared library whose symbols llama-server's copy
    # would be mixed up with.
    file(GLOB kvaq_httplib_found "${CMAKE_SOURCE_DIR}/.deps/src/*/vendor/llama.cpp/vendor/cpp-httplib" "${kvaq_llama_source}/vendor/cpp-httplib")
    list(APPEND kvaq_httplib_found "")
    list(GET kvaq_httplib_found 0 kvaq_httplib_found)
    set(KVAQ_HTTPLIB_DIR "${kvaq_httplib_found}" CACHE PATH "cpp-httplib (httplib.h, httplib.cpp) for metrics; empty: none are served")
  endif()
endmacro()
