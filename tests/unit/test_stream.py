"""The conformance suite on `MixtureStream` itself."""

from cuvee.testing.stream import StreamSuite


class TestMixtureStream(StreamSuite):
    pass
