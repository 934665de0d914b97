package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.util.List;

final class ListeningTest {
  private static final String TABLES = """
        sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
         0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
         1: 020200C0:8515 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
         2: 0100007F:8515 0100007F:0016 01 00000000:00000000 00:00000000 00000000     0        0 3
         0: 0000000000000000FFFF00000100007F:942F 00000000000000000000000000000000:0000 0A 0 0 0 0 0 4
         1: 00000000000000000000000000000000:97E5 00000000000000000000000000000000:0000 0A 0 0 0 0 0 5
         2: 00000000000000000000000001000000:93A5 00000000000000000000000000000000:0000 0A 0 0 0 0 0 6
      """;

  void theAddressThatAPortListensOnIsReadFromTheKernelsTables() {
    equal(List.of("0.0.0.0"), found(0x1F90));
    equal(List.of("192.0.2.2"), found(0x8515));
    equal(List.of("127.0.0.1"), found(0x942F));
    equal(List.of("0:0:0:0:0:0:0:0"), found(0x97E5));
    equal(List.of("0:0:0:0:0:0:0:1"), found(0x93A5));
    equal(List.of(), found(1));
  }

  private static List<String> found(int port) {
    return List.copyOf(Listening.in(TABLES, port));
  }

  void aPortOfThisProcessIsFoundWhereItWasBound() throws IOException {
    try (ServerSocket here = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
      equal(List.of("127.0.0.1"), List.copyOf(Listening.on(here.getLocalPort())));
    }
  }
}
