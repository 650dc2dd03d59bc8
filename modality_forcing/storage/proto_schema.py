"""Protocol Buffers messages from a schema in Python, without generated code or TensorFlow."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

_MESSAGE = re.compile(r"message (\w+) \{(.*?)\}", re.DOTALL)
_FIELD = re.compile(r"(optional|repeated) (\w+) (\w+) = (\d+)( \[packed = true\])?;")

_SCALARS = frozenset(FieldDescriptorProto.Type.keys())

# A generated message class has its fields as attributes, which no checker sees.
MessageClass = Any


def define_messages(schema: str) -> dict[str, MessageClass]:
    """Returns the classes of the messages in a schema, by name.

    schema: proto2 messages of optional and repeated fields; a type is a scalar or a message of the
    schema. The classes are in a pool of their own, so a process may also load TensorFlow's or
    Waymo's definitions.
    """
    file = FileDescriptorProto(name="schema.proto", syntax="proto2")
    for name, body in _MESSAGE.findall(schema):
        message = file.message_type.add(name=name)
        for label, kind, field, number, packed in _FIELD.findall(body):
            added = message.field.add(name=field, number=int(number))
            added.label = FieldDescriptorProto.Label.Value(f"LABEL_{label.upper()}")
            if f"TYPE_{kind.upper()}" in _SCALARS:
                added.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
            else:
                added.type_name = kind
            if packed:
                added.options.packed = True
    pool = DescriptorPool()
    pool.Add(file)
    names = [message.name for message in file.message_type]
    return {name: GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


def parse(message_class: MessageClass, content: bytes) -> MessageClass:
    """Deserializes a message; raises ValueError if the bytes are not a complete one."""
    try:
        return message_class.FromString(content)
    except DecodeError as error:
        raise ValueError(f"not a {message_class.DESCRIPTOR.name} message ({error})") from error
