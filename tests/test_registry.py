import inspect
import os
import shutil
import subprocess
import sys
import warnings
from abc import ABCMeta
from pathlib import Path

import pytest

from tempspec import registry
from tempspec.errors import UserError
from tempspec.registry import FAMILIES, Plugin, RegistryWarning

GOOD = """
from tempspec.interfaces import Divergence

class Good(Divergence):
    def per_position(self, logp_BTV, logq_BTV):
        return (logp_BTV - logq_BTV).sum(-1)
"""


@pytest.fixture
def fresh(monkeypatch):
    """The registry as a new process finds it."""
    registry.load.cache_clear()
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    yield
    registry.load.cache_clear()


@pytest.fixture
def distribution(tmp_path, monkeypatch, fresh):
    """Puts a distribution on the path: its metadata as an installer writes it, and its modules."""

    def write(name, entries, modules=None, version="3.1", family="divergences"):
        folder = tmp_path / name
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{key} = {value}" for key, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[tempspec.{family}]", *lines, ""]))
        for module, text in (modules or {}).items():
            path = folder / f"{module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(folder)
        return folder

    return write


def loaded(name):
    """The plugins of one distribution, and the warnings that loading it cost."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plugins = [plugin for plugin in registry.load() if plugin.distribution == name]
    return plugins, [str(one.message) for one in caught if name in str(one.message)]


def python(code, *paths, **environment):
    """Run code in a new interpreter with folders on its path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------------------------------------------------------
# What is declared
# ---------------------------------------------------------------------------------------------------------------------


def test_families_are_the_abstract_bases_of_the_interfaces():
    from tempspec import interfaces

    for base in FAMILIES.values():
        assert isinstance(getattr(interfaces, base), ABCMeta)
        assert base in interfaces.__all__


def test_scan_lists_every_family_in_order_and_imports_nothing():
    plugins = registry.scan()
    assert {plugin.family for plugin in plugins} == set(FAMILIES)
    order = [(list(FAMILIES).index(plugin.family), plugin.name) for plugin in plugins]
    assert order == sorted(order)
    assert all(plugin.cls is None and plugin.error is None for plugin in plugins)


def test_scan_imports_neither_torch_nor_plugins():
    code = (
        "import sys, tempspec.registry as r; r.scan(); print(sorted({'torch', 'tempspec.plugins'} & set(sys.modules)))"
    )
    assert python(code).stdout.strip() == "[]"


def test_the_same_distribution_twice_on_the_path_counts_once(distribution, monkeypatch):
    folder = distribution("acme", {"Good": "acme_good:Good"}, {"acme_good": GOOD})
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    monkeypatch.syspath_prepend(copy)
    assert [plugin.name for plugin in registry.scan() if plugin.distribution == "acme"] == ["Good"]


@pytest.mark.parametrize("call", [registry.scan, registry.load, lambda: registry.get("divergences", "SkewKL")])
def test_two_distributions_of_one_plugin_name_are_both_named(distribution, call):
    distribution("acme", {"Good": "acme_good:Good"})
    distribution("rival", {"Good": "rival_good:Good"}, version="0.9")
    with pytest.raises(UserError, match="one plugin named 'Good' in divergences") as caught:
        call()
    assert "acme 3.1" in str(caught.value)
    assert "rival 0.9" in str(caught.value)


def test_a_built_in_name_is_no_more_free_than_another(distribution):
    distribution("acme", {"ForwardKL": "acme_good:Good"})
    with pytest.raises(UserError, match=r"of acme 3\.1") as caught:
        registry.scan()
    assert "tempspec.plugins.divergences:ForwardKL" in str(caught.value)


def test_one_name_in_two_families_is_no_clash(distribution):
    distribution("acme", {"Same": "acme_good:Good"})
    distribution("rival", {"Same": "rival_good:Good"}, family="lengths")
    assert sum(plugin.name == "Same" for plugin in registry.scan()) == 2


# ---------------------------------------------------------------------------------------------------------------------
# What can be used
# ---------------------------------------------------------------------------------------------------------------------


def test_a_plugin_in_a_module_of_its_own_is_loaded_once(distribution):
    distribution("acme", {"Good": "acme_good:Good"}, {"acme_good": GOOD})
    (plugin,), messages = loaded("acme")
    assert messages == []
    assert plugin == Plugin("divergences", "Good", "acme_good:Good", "acme", "3.1", plugin.cls)
    assert registry.get("divergences", "Good") is plugin.cls
    assert "acme_good" in registry.allowed_packages()


def test_a_private_module_is_fine_where_its_package_exports(distribution):
    distribution(
        "acme", {"Good": "acme_out:Good"}, {"acme_out.__init__": "from ._in import Good", "acme_out._in": GOOD}
    )
    (plugin,), messages = loaded("acme")
    assert messages == []
    assert plugin.error is None


FAULTS = {
    "raises": ("raise RuntimeError('no such device')", "RuntimeError: no such device"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "syntax": ("def", "SyntaxError"),
    "missing": ("", "AttributeError"),
    "not_a_class": ("Bad = 3", "expected a class, got int"),
    "other_base": ("class Bad: ...", "expected a subclass of tempspec.interfaces.Divergence, got Bad"),
    "other_family": (
        "from tempspec.interfaces import TemperatureSchedule\nclass Bad(TemperatureSchedule):\n    __call__ = None",
        "expected a subclass of tempspec.interfaces.Divergence, got Bad",
    ),
    "same_name_as_the_base": (
        "class Divergence: ...\nclass Bad(Divergence): ...",
        "expected a subclass of tempspec.int",
    ),
    "abstract": (
        "from tempspec.interfaces import Divergence\nclass Bad(Divergence): ...",
        "expected a concrete class, got one without per_position",
    ),
    "other_name": (GOOD + "\nBad = Good", "expected the entry point to be named like its class, Good"),
    "unreachable": (
        GOOD.replace("Good", "Bad") + "\nBad.__module__ = 'elsewhere'",
        "expected a class that can be imported by a public name",
    ),
    "_private": (GOOD.replace("Good", "Bad"), "expected a class that can be imported by a public name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_one_warning_and_is_an_error_when_selected(distribution, fault):
    text, reason = FAULTS[fault]
    module = f"{'_' if fault == '_private' else ''}acme_{fault}"
    distribution("acme-faulty", {"Bad": f"{module}:Bad"}, {module: text})
    (plugin,), messages = loaded("acme-faulty")
    assert plugin.cls is None
    assert plugin.error is not None
    assert reason in plugin.error
    assert len(messages) == 1
    assert f"'Bad' in divergences ({module}:Bad of acme-faulty 3.1) cannot be used: {plugin.error}" in messages[0]
    assert loaded("acme-faulty")[1] == []
    assert registry.get("divergences", "ForwardKL").__name__ == "ForwardKL"
    assert module not in registry.allowed_packages()
    with pytest.raises(UserError, match=r"of acme-faulty 3\.1\) cannot be used"):
        registry.get("divergences", "Bad")


def test_other_processes_of_a_machine_do_not_warn_again(distribution, monkeypatch):
    distribution("acme-faulty", {"Bad": "acme_nowhere:Bad"})
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert loaded("acme-faulty")[1] == []


@pytest.mark.parametrize(
    ("family", "name", "parts"),
    [
        ("divergences", "JensenShanon", ["did you mean 'JensenShannon'?", "ForwardKL, JensenShannon"]),
        ("divergences", "forwardkl", ["did you mean 'ForwardKL'?"]),
        ("schedules", "Zzz", ["got 'Zzz': choose from Constant, Cosine"]),
        ("divergence", "ForwardKL", ["expected a plugin family, got 'divergence': did you mean 'divergences'?"]),
    ],
)
def test_an_unknown_name_gets_a_suggestion_and_the_list(family, name, parts):
    with pytest.raises(UserError) as caught:
        registry.get(family, name)
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("plugin", registry.scan(), ids=lambda plugin: plugin.name)
def test_every_built_in_loads(plugin):
    assert registry.get(plugin.family, plugin.name).__name__ == plugin.name


@pytest.mark.parametrize("plugin", registry.scan(), ids=lambda plugin: plugin.name)
def test_every_built_in_documents_itself_and_its_options(plugin):
    cls = registry.get(plugin.family, plugin.name)
    assert cls.__doc__
    assert 20 < len(cls.__doc__.splitlines()[0]) < 120
    documented = "".join(inspect.cleandoc(parent.__doc__) for parent in cls.__mro__[:-1] if parent.__doc__)
    options = set(inspect.signature(cls).parameters)
    assert [option for option in sorted(options) if f"\n    {option}: " not in documented] == []


# ---------------------------------------------------------------------------------------------------------------------
# Installed packages, in new processes
# ---------------------------------------------------------------------------------------------------------------------


def test_an_installed_package_is_seen_by_name_with_its_origin(plugin_package: Path):
    code = """if True:
        from tempspec import registry
        print([plugin.name for plugin in registry.load() if plugin.origin == 'tempspec-example 1.2.3'])
        print('tempspec_example' in registry.allowed_packages())
    """
    done = python(code, plugin_package)
    assert done.stdout.splitlines() == ["['Renyi', 'LogUniform', 'SpecVerification']", "True"], done.stderr


def test_a_broken_package_warns_once_and_fails_when_selected(broken_plugin_package: Path):
    code = """if True:
        from tempspec import registry
        registry.load(), registry.load()
        registry.get('divergences', 'ForwardKL')
        registry.get('divergences', 'Broken')
    """
    done = python(code, broken_plugin_package)
    lines = [line for line in done.stderr.splitlines() if "tempspec-broken 0.0.7" in line]
    warned, failed = lines
    reason = "cannot be used: ImportError: tempspec_broken was built for another torch"
    assert RegistryWarning.__name__ in warned
    assert reason in warned
    assert failed.startswith("tempspec.errors.UserError")
    assert reason in failed


def test_importing_the_package_and_the_registry_imports_no_torch():
    heavy = {"torch", "lightning", "transformers", "jsonargparse"}
    code = f"import sys, tempspec, tempspec.registry; print(sorted({heavy} & set(sys.modules)))"
    assert python(code).stdout.strip() == "[]"
