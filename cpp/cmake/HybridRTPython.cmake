# Finds the packages of the Python environment that the build takes headers and libraries from.

set(_python_parts Interpreter)
if(HYBRID_RT_BUILD_PYTHON)
  list(APPEND _python_parts Development.Module)
endif()
find_package(Python 3.10 REQUIRED COMPONENTS ${_python_parts})

# Returns the directory of an importable package. Under build isolation pip hides the environment's packages from
# import, but they are still in the interpreter's site-packages. torch must be that one, because the binary is built for
# it.
function(hybrid_rt_python_package name result)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; s = u.find_spec('${name}'); print(list(s.submodule_search_locations)[0] if s else '')"
    OUTPUT_VARIABLE directory OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT directory AND EXISTS "${Python_SITELIB}/${name}")
    set(directory "${Python_SITELIB}/${name}")
  endif()
  set(${result} "${directory}" PARENT_SCOPE)
endfunction()

# Sets `result`, a cache variable, to the directory of a backend's headers: that of a Python package, or one that CMake
# finds. A message of kind `severity` says that the backend is left out if there is none.
function(hybrid_rt_backend_headers backend header package pip_name severity result)
  hybrid_rt_python_package(${package} directory)
  find_path(${result} ${header} HINTS "${directory}/include")
  if(NOT ${result})
    message(${severity} "hybrid_rt[${backend}]: headers: expected ${header}, got none; this backend is left out. "
      "Install ${pip_name} (pip install ${pip_name}) and build again.")
  endif()
endfunction()

hybrid_rt_python_package(torch _torch_of_environment)
set(HYBRID_RT_TORCH_FOLDER "${_torch_of_environment}" CACHE PATH "torch's directory in site-packages, or an unpacked libtorch")
