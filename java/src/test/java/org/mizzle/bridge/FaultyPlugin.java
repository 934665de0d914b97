package org.mizzle.bridge;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.spark.SparkEnv;
import org.apache.spark.api.plugin.DriverPlugin;
import org.apache.spark.api.plugin.ExecutorPlugin;
import org.apache.spark.api.plugin.SparkPlugin;
import org.apache.spark.network.client.StreamCallback;
import org.apache.spark.network.client.TransportClient;

/**
 * mizzle's plugin, in whose executors an asynchronous call throws: the one by which a block is asked
 * for, once the directory CHAOS_HOME has a file named "arm", which becomes "thrown".
 */
public final class FaultyPlugin implements SparkPlugin {
  @Override
  public DriverPlugin driverPlugin() {
    return new DriverSide();
  }

  @Override
  public ExecutorPlugin executorPlugin() {
    return new ExecutorSide(FaultyPeers::new);
  }

  private static final class FaultyPeers extends Peers {
    FaultyPeers(SparkEnv env) {
      super(env);
    }

    @Override
    TransportClient connect(String host, int port) throws IOException, InterruptedException {
      TransportClient client = super.connect(host, port);
      Path home = Path.of(System.getenv("CHAOS_HOME"));
      return new TransportClient(client.getChannel(), client.getHandler()) {
        @Override
        public void stream(String name, StreamCallback callback) {
          if (Files.exists(home.resolve("arm")) && isFirst(home)) {
            throw new IllegalStateException("a block cannot be asked for");
          }
          super.stream(name, callback);
        }
      };
    }

    /** Of all executors one is. */
    private static boolean isFirst(Path home) {
      try {
        Files.move(home.resolve("arm"), home.resolve("thrown"));
        return true;
      } catch (java.nio.file.NoSuchFileException e) {
        return false;
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }
  }
}
