package org.mizzle.bridge;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Comparator;
import java.util.Objects;

/**
 * Runs every method without parameters of the classes named, each on an object of its own. Exits
 * with 1 when one failed or none was found. No test library: only Spark's jars are at hand.
 */
final class RunTests {
  private RunTests() {}

  public static void main(String[] classes) throws ReflectiveOperationException {
    int run = 0;
    int failed = 0;
    for (String name : classes) {
      Class<?> type = Class.forName("org.mizzle.bridge." + name);
      Method[] methods = type.getDeclaredMethods();
      Arrays.sort(methods, Comparator.comparing(Method::getName));
      for (Method method : methods) {
        if (method.getParameterCount() == 0 && !method.isSynthetic()
            && method.getReturnType() == void.class) {
          run++;
          failed += passes(type, method) ? 0 : 1;
        }
      }
    }
    System.out.println(run + " run, " + failed + " failed");
    System.exit(failed == 0 && run > 0 ? 0 : 1);
  }

  private static boolean passes(Class<?> type, Method method) throws ReflectiveOperationException {
    try {
      method.invoke(type.getDeclaredConstructor().newInstance());
      System.out.println("ok " + type.getSimpleName() + "." + method.getName());
      return true;
    } catch (InvocationTargetException e) {
      System.out.println("FAILED " + type.getSimpleName() + "." + method.getName());
      e.getCause().printStackTrace(System.out);
      return false;
    }
  }

  static void check(boolean holds, String what) {
    if (!holds) {
      throw new AssertionError(what);
    }
  }

  static void equal(Object expected, Object actual) {
    boolean same = expected instanceof byte[] bytes
        ? Arrays.equals(bytes, (byte[]) actual) : Objects.equals(expected, actual);
    check(same, "expected " + expected + ", found " + actual);
  }

  /** Code that may throw anything. */
  interface Action {
    void run() throws Exception;
  }

  /** Runs what must fail in this way, and returns the failure. */
  static <T extends Throwable> T fails(Class<T> type, Action action) {
    try {
      action.run();
    } catch (Throwable e) {
      if (type.isInstance(e)) {
        return type.cast(e);
      }
      throw new AssertionError("expected " + type.getSimpleName(), e);
    }
    throw new AssertionError("expected " + type.getSimpleName() + ", nothing was thrown");
  }

  /** A file of protocol/golden. */
  static byte[] golden(String name) throws java.io.IOException {
    return Files.readAllBytes(Path.of(System.getProperty("golden"), name + ".bin"));
  }
}
