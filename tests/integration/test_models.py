"""Models: versions by their bytes, and the workers that serve them."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from custody import models
from custody.errors import CustodyError, StartError
from custody.models import ModelFiles, Registration
from custody.wire import JobState, ModelReference


def registration(content: bytes, name: str = "digits") -> Registration:
    digest = sha256(content).digest()
    files = ModelFiles(name, digest, f"models/{name}/{digest.hex()[:16]}/{name}.onnx")
    return Registration(files, "detect", ["zero", "one"], 320, 256)


async def register(domain, content: bytes, name: str = "digits") -> ModelReference:
    async with domain.worker.transaction() as transaction:
        return await models.register(transaction, registration(content, name))


async def test_the_same_bytes_are_the_same_version_and_others_the_next(domain):
    versions = [(await register(domain, content)).version for content in (b"one", b"two", b"one", b"three", b"two")]
    assert versions == [1, 2, 1, 3, 2]
    reference = await register(domain, b"one", "birds")
    assert reference == ModelReference(name="birds", version=1, digest=sha256(b"one").hexdigest())


async def test_workers_that_register_at_once_agree_on_the_versions(domain):
    async with domain.worker.transaction() as transaction:
        first = await models.register(transaction, registration(b"one"))
        others = [asyncio.create_task(register(domain, content)) for content in (b"one", b"two", b"two", b"three")]
        await asyncio.sleep(0.1)
    references = [first, *[await other for other in others]]
    by_digest = {reference.digest: reference.version for reference in references}
    assert sorted(by_digest.values()) == [1, 2, 3]
    assert {(reference.digest, reference.version) for reference in references} == set(by_digest.items())


async def test_the_newest_active_version_is_the_one_to_serve(domain):
    for content in (b"one", b"two", b"three"):
        await register(domain, content)
    domain.rows("UPDATE wharf.models SET state = 'retired' WHERE version = 3")
    async with domain.worker.transaction() as transaction:
        assert await models.newest_path(transaction, "digits") == registration(b"two").files
        assert await models.newest_path(transaction, "birds") is None


async def test_the_operator_retires_a_version_or_all_of_them(domain, acme):
    operator = domain.add_tenant("operator")
    domain.rows("UPDATE wharf.tenants SET operator = true WHERE id = %s", [operator])
    for content in (b"one", b"two"):
        await register(domain, content)
    await register(domain, b"one", "birds")

    async def retire(tenant, name: str, version: int | None = None) -> None:
        async with domain.api.transaction(tenant) as transaction:
            await models.retire(transaction, name, version)

    async def active() -> set[tuple[str, int]]:
        async with domain.api.transaction(acme) as transaction:
            known = await models.list_models(transaction)
        return {(model.name, one.version) for model in known for one in model.versions if one.state == "active"}

    everything = {("digits", 1), ("digits", 2), ("birds", 1)}
    for tenant, name, version, code in (
        (acme, "digits", None, "forbidden"),
        (operator, "digits", 3, "not_found"),
        (operator, "fish", None, "not_found"),
    ):
        with pytest.raises(CustodyError) as refused:
            await retire(tenant, name, version)
        assert refused.value.code == code
    assert await active() == everything
    for _ in range(2):
        await retire(operator, "digits", 2)
        assert await active() == {("digits", 1), ("birds", 1)}
    await retire(operator, "digits")
    assert await active() == {("birds", 1)}


async def test_a_retired_version_is_not_served_again_and_other_bytes_are_the_next(domain):
    await register(domain, b"one")
    domain.rows("UPDATE wharf.models SET state = 'retired'")
    with pytest.raises(StartError, match="Version 1 of digits is retired, and nothing waits"):
        await register(domain, b"one")
    assert (await register(domain, b"two")).version == 2
    with pytest.raises(StartError, match="Version 1 of digits is retired, and others are active"):
        await register(domain, b"one")
    assert domain.rows("SELECT version, state FROM wharf.models ORDER BY version") == [
        {"version": 1, "state": "retired"},
        {"version": 2, "state": "active"},
    ]


async def test_what_waits_for_a_retired_model_is_worked_off_by_a_worker_that_starts(domain, acme):
    await register(domain, b"one")
    job = await domain.submit(acme)
    domain.rows("UPDATE wharf.models SET state = 'retired'")
    async with domain.worker.transaction() as transaction:
        assert await models.newest_path(transaction, "digits") == registration(b"one").files
    assert (await register(domain, b"one")).version == 1
    [claim] = await domain.claim()
    with pytest.raises(StartError, match="nothing waits"):
        await register(domain, b"one")
    assert await domain.end(claim)
    assert (await domain.get(acme, job)).state is JobState.SUCCEEDED
    assert domain.rows("SELECT state FROM wharf.models") == [{"state": "retired"}]


async def test_a_request_that_names_no_model_gets_the_only_one(domain, acme):
    async def resolve(name: str | None) -> str:
        async with domain.api.transaction(acme) as transaction:
            return await models.resolve(transaction, name)

    async def code_of(name: str | None) -> tuple[str, str]:
        with pytest.raises(CustodyError) as refused:
            await resolve(name)
        return refused.value.code, refused.value.field

    not_found = ("model_not_found", "model")
    assert await code_of(None) == not_found
    await register(domain, b"one")
    await register(domain, b"two")
    assert await resolve(None) == await resolve("digits") == "digits"
    assert await code_of("birds") == not_found
    await register(domain, b"one", "birds")
    assert await resolve("birds") == "birds"
    assert await code_of(None) == not_found
    domain.rows("UPDATE wharf.models SET state = 'retired' WHERE name = 'digits'")
    assert await resolve(None) == "birds"
    assert await code_of("digits") == not_found


async def test_a_listed_model_tells_its_versions_and_its_living_workers(domain, acme):
    digits = [await register(domain, content) for content in (b"one", b"two")]
    birds = await register(domain, b"one", "birds")

    async def report(worker: str, model: ModelReference) -> None:
        async with domain.worker.transaction() as transaction:
            await models.report_worker(transaction, worker=worker, model=model, engine="openvino", slots=2, release="1")

    async def listed(name: str | None = None):
        async with domain.api.transaction(acme) as transaction:
            return await models.list_models(transaction, name)

    await report("w1", digits[0])
    await report("w2", digits[1])
    await report("w2", digits[1])
    await report("silent", digits[1])
    await report("w3", birds)
    domain.rows("UPDATE wharf.workers SET seen_at = now() - interval '31 seconds' WHERE name = 'silent'")
    [first, second] = await listed()
    assert (first.name, first.ready_workers, [one.version for one in first.versions]) == ("birds", 1, [1])
    assert (second.name, second.ready_workers, [one.version for one in second.versions]) == ("digits", 2, [2, 1])
    [version] = first.versions
    assert (version.digest, version.task, version.classes) == (birds.digest, "detect", ["zero", "one"])
    assert (version.input_width, version.input_height, version.state) == (320, 256, "active")
    assert await listed("birds") == [first]
    assert await listed("fish") == []
    async with domain.worker.transaction() as transaction:
        await models.forget_worker(transaction, "w1")
    assert (await listed("digits"))[0].ready_workers == 1


# Installing


def test_a_model_is_copied_once_under_its_digest(tmp_path):
    source = tmp_path / "digits.onnx"
    source.write_bytes(b"a model")
    volume = tmp_path / "volume"
    files = models.install(source, volume)
    assert files.digest == sha256(b"a model").digest()
    assert files.path == f"models/digits/{files.digest.hex()[:16]}/digits.onnx"
    assert (volume / files.path).read_bytes() == b"a model"
    before = (volume / files.path).stat()
    assert models.install(source, volume) == files
    assert (volume / files.path).stat().st_ino == before.st_ino
    source.write_bytes(b"another model")
    assert models.install(source, volume).path != files.path


def test_an_openvino_model_brings_its_weights_and_metadata_along(tmp_path):
    source = tmp_path / "digits.xml"
    source.write_bytes(b"<net/>")
    with pytest.raises(StartError, match=r"digits\.bin is missing"):
        models.install(source, tmp_path / "volume")
    (tmp_path / "digits.bin").write_bytes(b"weights")
    first = models.install(source, tmp_path / "volume")
    assert {path.name for path in (tmp_path / "volume" / first.path).parent.iterdir()} == {"digits.xml", "digits.bin"}
    (tmp_path / "metadata.yaml").write_bytes(b"task: detect")
    second = models.install(source, tmp_path / "volume")
    assert second.digest != first.digest
    assert (tmp_path / "volume" / second.path).with_name("metadata.yaml").read_bytes() == b"task: detect"


def test_a_model_that_is_a_folder_is_copied_whole_and_known_by_all_its_files(tmp_path):
    source = tmp_path / "Birds_ncnn_model"
    (source / "more").mkdir(parents=True)
    (source / "model.param").write_bytes(b"layers")
    (source / "more" / "model.bin").write_bytes(b"weights")
    first = models.install(source, tmp_path / "volume")
    assert first.path == f"models/birds/{first.digest.hex()[:16]}/Birds_ncnn_model"
    assert (tmp_path / "volume" / first.path / "more" / "model.bin").read_bytes() == b"weights"
    (source / "more" / "model.bin").write_bytes(b"other weights")
    assert models.install(source, tmp_path / "volume").digest != first.digest


def test_a_model_that_was_changed_on_the_volume_is_not_served(tmp_path):
    (tmp_path / "digits.xml").write_bytes(b"<net/>")
    (tmp_path / "digits.bin").write_bytes(b"weights")
    volume = tmp_path / "volume"
    files = models.install(tmp_path / "digits.xml", volume)
    models.check_bytes(files, volume)
    (volume / files.path).with_suffix(".bin").write_bytes(b"others")
    with pytest.raises(StartError, match=r"digits was changed on the volume: models/digits/\w+/digits\.xml"):
        models.check_bytes(files, volume)


def test_what_goes_beside_a_model_does_not_count_in_its_digest(tmp_path):
    (tmp_path / "digits.onnx").write_bytes(b"a model")
    (tmp_path / "digits_openvino_model").mkdir()
    (tmp_path / "digits_openvino_model" / "digits.xml").write_bytes(b"<net/>")
    beside = [tmp_path / "digits_openvino_model"]
    files = models.install(tmp_path / "digits.onnx", tmp_path / "volume", name="mine", beside=beside)
    assert (files.name, files.digest) == ("mine", sha256(b"a model").digest())
    folder = (tmp_path / "volume" / files.path).parent
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {
        "digits.onnx",
        "digits_openvino_model/digits.xml",
    }


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/models/Digits v2.onnx", "digits-v2"),
        ("best.pt", "best"),
        ("runs/best_openvino_model/", "best"),
        (f"{'x' * 80}.onnx", "x" * 63),
        ("___.onnx", "model"),
        ("digits", "digits"),
        ("my_model", "my_model"),
        ("yolo11n.v2", "yolo11n.v2"),
    ],
)
def test_a_model_file_gives_a_name_and_a_name_is_its_own(model, name):
    assert models.name_of(model) == name
    assert models.is_file(model) == (model != name)
    assert models.checked_name(name) == name


def test_workers_that_install_at_once_leave_one_whole_model(tmp_path):
    source = tmp_path / "digits.onnx"
    source.write_bytes(bytes(3_000_000))
    volume = tmp_path / "volume"
    with ThreadPoolExecutor(8) as threads:
        installed = list(threads.map(lambda _: models.install(source, volume), range(16)))
    assert set(installed) == {installed[0]}
    assert (volume / installed[0].path).read_bytes() == bytes(3_000_000)
    assert len(list((volume / "models" / "digits").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "message"), [("missing.onnx", "no model file"), ("digits.txt", "no known model format")]
)
def test_what_is_no_model_is_refused(tmp_path, name, message):
    (tmp_path / "digits.txt").write_bytes(b"a text")
    with pytest.raises(StartError, match=message):
        models.install(tmp_path / name, tmp_path / "volume")
